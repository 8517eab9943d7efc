"""The EasyCache engine (arXiv 2507.02860): decide at run time which network evaluations a sampler can skip.

Needs torch alone. Read it in this order: config, rate, decision, predictor, reuse, course, forecast, budget,
storage, trace, ranks, controller. attach gives it to any torch.nn.Module (interface, terms).
"""

from .attach import attach
from .config import CacheConfig
from .controller import CacheController
from .ranks import RankLost, Ranks, RanksDiffer

__all__ = ["CacheConfig", "CacheController", "RankLost", "Ranks", "RanksDiffer", "attach"]
