"""The EasyCache Report node."""

from comfy_api.latest import io

from .json_text import as_json
from .pictures import as_images
from .plot import draw_message, draw_report
from .run_history import history_of

NOT_PATCHED = (
    "Nothing to report: this model has not been through an EasyCache (Adaptive) node. Connect that node's output here "
    "and to the sampler."
)
NOT_SAMPLED = (
    "Nothing to report: no run of this model has ended yet. Connect the model from the same EasyCache (Adaptive) node "
    "to the sampler. If it is connected, the sampler had no steps to take (denoise 0), or ComfyUI has taken its result "
    "from its cache; change the seed to sample again."
)
NOT_THIS_LATENT = (
    "Nothing to report: no run of this model left this latent, and none was part of this job. Connect the LATENT that "
    "comes out of the sampler, as it is. If it is, the sampler had no steps to take (denoise 0), or ComfyUI has taken "
    "its result from its cache; change the seed to sample again."
)
OTHER_LATENT = "No run of this model left this latent as it is: this is the model's last run in this job."


class EasyCacheReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EasyCacheReport",
            display_name="EasyCache Report",
            category="EasyCache",
            description="Shows what EasyCache (Adaptive) did while a latent was sampled: which evaluations were "
            "computed and which skipped, and why, as a plot and as JSON.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model as it comes out of EasyCache (Adaptive), or out of a LoRA or shift node behind "
                    "it: the one that the sampler gets.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The sampler's output. It says which run is meant, and is handed on unchanged, so that "
                    "the report is made before it is decoded.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The latent that came in, unchanged."),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Each evaluation of the run, computed or skipped, with its estimated error and the "
                    "transformation rate. One picture, 1024 x 768.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="All numbers of the run as JSON, with one record per evaluation in trace. If there is "
                    "nothing to report, its only entry is a message that says why; a message beside the numbers says "
                    "that the latent is of no run.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent: dict) -> io.NodeOutput:
        history = history_of(model)
        report = history and history.find(latent["samples"])
        if history is not None and report is None and (last := history.last_of_job) is not None:
            report = {**last, "message": OTHER_LATENT}
        if report is not None:
            return io.NodeOutput(latent, as_images(draw_report(report)), as_json(report))
        message = NOT_PATCHED if history is None else NOT_SAMPLED if history.last is None else NOT_THIS_LATENT
        return io.NodeOutput(latent, as_images(draw_message(message)), as_json({"message": message}))
