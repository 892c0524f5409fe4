"""`python -m train CONFIG member=base [a.b=c …]`."""

import argparse
import sys

from imagen import config as configs
from imagen.errors import ConfigError
from runtime.cli import main, stage_parser

DESCRIPTION = """\
Train one U-Net of the cascade on Ray Train, with as many workers as the config allows and the
machines give. Needs the output of `python -m preencode CONFIG`.

Run it again after any stop: it goes on from the newest checkpoint. The same images, noise and
times make up each step whatever the number of workers, so the result is the same as without the
stop, up to the order of float sums."""

EPILOG = """\
examples:
  python -m train pipeline/configs/digits.yaml member=base
  python -m train pipeline/configs/digits.yaml member=sr1 train.sr1.images=40000
  python -m train pipeline/configs/digits.yaml member=base 'train.base.workers=[1,4]' --dry-run

what it writes, in <out>/<member>/:
  log.jsonl, tensorboard/     loss, gradient norm, learning rate, images/s, number of workers
  checkpoints/<images>/       everything needed to go on; the newest three are kept
  snapshots/<images>/         averaged (EMA) weights: what `python -m eval CONFIG` samples from
  run.json                    written last: the run is done

watch it:  tensorboard --logdir <out>"""


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would do."""
    from train import stage  # imports torch: --help does without
    from train.config import TrainStageConfig

    chosen = [o.partition("=")[2] for o in args.overrides if o.startswith("member=")]
    if len(chosen) != 1:
        raise ConfigError("which member to train?", "add member=base, or member=sr1")
    member = chosen[0]
    overrides = [o for o in args.overrides if not o.startswith("member=")]
    config = configs.load_config(TrainStageConfig, args.config, overrides)
    config.of(member)
    if args.dry_run:
        print(configs.dump_yaml(config))
        print(stage.describe(config, member))
        return 0
    trained = stage.run(config, member, args.address)
    how = "trained" if trained else "is done already"
    state = stage.state(config, member)
    print(f"{member} {how}: {state.detail}, snapshot {' '.join(state.outputs)}", file=sys.stdout)
    return 0


if __name__ == "__main__":
    main(run, stage_parser("python -m train", DESCRIPTION, EPILOG))
