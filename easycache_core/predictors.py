"""The predictors by name. A new one is a class in a file of its own and a line here."""

from .forecast import Forecast
from .predictor import Predictor
from .reuse import Reuse

PREDICTORS: dict[str, type[Predictor]] = {"reuse": Reuse, "forecast": Forecast}
