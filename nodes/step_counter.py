"""Which step of the sampler an evaluation belongs to."""


class StepCounter:
    """Finds the step of each evaluation from the sampler's callbacks, so that no device tensor has to be read.

    Samplers call back once per step, after the step's first evaluation (k-diffusion), its only one (UniPC) or its last
    one (DPM adaptive, of three). Several evaluations before the first callback show that it comes last; a step then
    ends with it, however many evaluations it has. Else, with m evaluations per step, the m - 1 after a callback still
    belong to its step. m is known from the second callback on; between the first two, the step is `ambiguous`. A
    sampler that has not called back within _LATEST_CALLBACK evaluations is taken to evaluate once per step.
    """

    _LATEST_CALLBACK = 4  # evaluations

    def __init__(self, callbacks: int = 0):
        """callbacks: how many there have been."""
        self._evaluations = 0
        self.last = 0  # step of the last evaluation
        self._callback_step: int | None = callbacks - 1 if callbacks else None  # step of the last callback
        self.since_callback = 0  # evaluations, since the last one
        self._per_step: int | None = None  # m, once known
        self._callback_last = False  # whether a callback follows the last evaluation of its step

    def next_evaluation(self) -> int:
        """Count one evaluation and return its step, from 0."""
        if self._callback_step is None:
            step = self._evaluations if self._evaluations >= self._LATEST_CALLBACK else 0
        elif not self._callback_last and self.since_callback < (self._per_step or 1) - 1:
            step = self._callback_step
        else:
            step = self._callback_step + 1
        self._evaluations += 1
        self.since_callback += 1
        self.last = step
        return step

    @property
    def called_back(self) -> bool:
        """Whether the sampler has called back since the last evaluation."""
        return self._callback_step is not None and not self.since_callback

    @property
    def ambiguous(self) -> bool:
        """Whether the evaluation just counted may belong to the first step or to the second."""
        return self._callback_step is not None and self._per_step is None

    @property
    def evaluations_per_step(self) -> int:
        """As far as they were seen."""
        if self._callback_step is None and self._evaluations > self._LATEST_CALLBACK:
            return 1
        return self._per_step or max(1, self.since_callback)

    @property
    def one_per_step(self) -> bool:
        """Whether the sampler has been seen to evaluate once per step."""
        return self._per_step == 1

    def on_callback(self) -> None:
        """The sampler has called back. Callbacks are counted: some samplers number them otherwise."""
        if self._callback_step is None:
            self._callback_last = self.since_callback > 1
        elif self.since_callback:
            self._per_step = self.since_callback
        self._callback_step = 0 if self._callback_step is None else self._callback_step + 1
        self.since_callback = 0
