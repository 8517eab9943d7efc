"""The paper's rule (section 3.3) once more, on its own, as plainly as it can be written."""

import torch


def decide(inputs, outputs, threshold, warmup):
    """Which evaluations of a finished run the rule would have computed.

    inputs: x of each evaluation, tensors. outputs: v of the tracked branch there; asked only where it was computed.
    """

    def norm(tensor):
        return tensor.float().abs().mean()

    computed, k, error = [], None, 0.0
    for n, x in enumerate(inputs):
        if n < warmup or n == len(inputs) - 1 or k is None:
            run, error = True, 0.0
        else:
            i = computed[-1]
            error = error + k * norm(x - inputs[n - 1]) / norm(outputs[i])
            run = not error < threshold
            error = 0.0 if run else error
        if run:
            if computed:
                j = computed[-1]
                k = norm(outputs[n] - outputs[j]) / norm(x - inputs[j])
            computed.append(n)
    return [n in computed for n in range(len(inputs))]


class Recorder:
    """While entered, notes each call of a module: x, the prediction, and whether the network ran.

    x_of, v_of: from (args, kwargs) and from what came back, the tensor in question. part: a module within that runs
    once in every forward.
    """

    def __init__(self, module, part, x_of=lambda args, kwargs: args[0], v_of=lambda output: output):
        self._module, self._part, self._x_of, self._v_of = module, part, x_of, v_of
        self.x, self.v, self.ran = [], [], []

    def __enter__(self):
        self._hooks = [
            self._module.register_forward_pre_hook(self._before, with_kwargs=True),
            self._part.register_forward_hook(self._inside),
            self._module.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()

    def _before(self, module, args, kwargs):
        self.x.append(self._x_of(args, kwargs).clone())
        self.ran.append(False)

    def _inside(self, *_):
        self.ran[-1] = True

    def _after(self, module, args, output):
        self.v.append(self._v_of(output).detach().clone())

    def tracked(self, calls):
        """(x, v, ran) of the first of so many calls an evaluation."""
        return self.x[::calls], self.v[::calls], self.ran[::calls]


def predictions_of_the_rule(inputs, outputs, ran):
    """x_n + (v_i - x_i) for each evaluation that was skipped, and what came back there instead."""
    for n, computed in enumerate(ran):
        if computed:
            i = n
        else:
            yield inputs[n] + (outputs[i] - inputs[i]), outputs[n]


def assert_the_papers(inputs, outputs, ran, config):
    """Decisions and predictions of a run are those of the rule, and some were skipped."""
    assert ran == decide(inputs, outputs, config.threshold, config.warmup_steps)
    assert 0 < sum(ran) < len(ran), "a run without skipped steps would prove nothing"
    for expected, got in predictions_of_the_rule(inputs, outputs, ran):
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-4, atol=1e-5)
