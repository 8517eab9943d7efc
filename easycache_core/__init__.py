"""The EasyCache engine (arXiv 2507.02860): decide at run time which network evaluations a sampler can skip.

Read it in this order: config, controller, predictor; reuse, which is the paper's rule; steps, response, correction and
forecast; placement and budget. They use norms, reading, storage, trace; ranks for several processes. attach caches any
torch.nn.Module: interface and question know its calls, turns and schedule its latents and steps.
"""

from .attach import attach
from .config import CacheConfig
from .controller import CacheController
from .ranks import RankLost, Ranks, RanksDiffer
from .response import Response, euler_response

__all__ = ["CacheConfig", "CacheController", "RankLost", "Ranks", "RanksDiffer", "Response", "attach", "euler_response"]
