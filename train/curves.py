"""Curves of a training and of its validation for Weights & Biases, when a config asks for them."""

from imagen import config as configs
from runtime.wandb_run import Description, WandbRun
from train.job import Job

TRAIN = "train"


def wandb_run(job: Job, part: str = TRAIN) -> WandbRun | None:
    """Open the run of a job's curves if its config asks for one; `part`: train or validation.

    Training and validation write at once: two runs, one group.
    """
    if not job.train.wandb:
        return None
    group = f"{job.config.name}/{job.member}"
    about = Description(
        project=job.train.wandb,
        folder=job.run_dir,
        name=group if part == TRAIN else f"{group} {part}",
        group=group,
        part=part,
        suffix="" if part == TRAIN else f"-{part}",
        config=configs.to_tree(job.config),
    )
    return WandbRun.open(about, otherwise="log.jsonl and TensorBoard")
