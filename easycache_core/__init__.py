"""The EasyCache engine (arXiv 2507.02860): decide at run time which network evaluations a sampler can skip.

Needs torch and numpy alone. Read it in this order: config, controller, predictor; reuse, which is the paper's rule;
steps, correction and forecast; budget. What they use: norms, reading, storage, trace. Several processes: ranks. attach
caches any torch.nn.Module (interface, prediction).
"""

from .attach import attach
from .config import CacheConfig
from .controller import CacheController
from .ranks import RankLost, Ranks, RanksDiffer

__all__ = ["CacheConfig", "CacheController", "RankLost", "Ranks", "RanksDiffer", "attach"]
