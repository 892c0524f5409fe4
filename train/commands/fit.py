"""`python -m train CONFIG member=base [a.b=c …]`: train one member."""

import argparse
import sys

from runtime.cli import stage_parser

TEXT = """\
Train one U-Net of the cascade on Ray Train, with as many workers as the config allows and the
machines give. Needs the output of `python -m preencode CONFIG`.

Run it again after any stop: it goes on from the newest checkpoint. The same images, noise and
times make up each step whatever the number of workers, so the result is the same as without the
stop, up to the order of float sums.

Another command: `python -m train ema`, EMA weights of another width after the training."""

MORE = """\
examples:
  python -m train pipeline/configs/digits.yaml member=base
  python -m train pipeline/configs/digits.yaml member=sr1 train.sr1.images=40000
  python -m train pipeline/configs/digits.yaml member=base 'train.base.workers=[1,4]' --dry-run
  python -m train new.yaml member=base train.base.init_from=./old/base     fine-tune a run's best

what may change when a run goes on (`train.<member>.…`):
  freely     workers, loader_workers, microbatch, parallel, compile, checkpoint_levels; when to log,
             save, validate and what to keep; ema_profiles: the weights stay the same
  as told    images, lr, warm-up and decay, optimizer, caption_drop, flip, the EMA and the like:
             taken from then on; the log and each snapshot's provenance say from which image
  --accept   seed, global_batch, lanes, window, data-fingerprint, encoder-fingerprint, diffusion,
             order-and-decoding, prepared-images: they break the promise that a step's samples
             follow from config and seed, so each has to be named: --accept lanes --accept window
  never      the network, its size and its initial weights: that is another run, with another `out`

what it writes, in <out>/<member>/:
  log.jsonl, tensorboard/     loss, gradient norm, learning rate, images/s, number of workers
  checkpoints/<images>/       everything needed to go on; the newest keep_checkpoints are kept
  snapshots/<images>/         averaged (EMA) weights: what `python -m eval CONFIG` samples from
  validation.jsonl, best.json loss on held-out samples, and which snapshot has the lowest
  run.json                    written last: the run is done

watch it:  tensorboard --logdir <out>"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = stage_parser("python -m train", TEXT, MORE)
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="NAME",
        help="go on although NAME was changed (see below); may be given several times",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Train, or say what training would do."""
    from imagen import config as configs
    from train import rundir, stage  # imports torch: --help does without
    from train.commands.arguments import load

    config, member = load(args)
    accept = sorted(rundir.accepted(args.accept))
    if args.dry_run:
        print(configs.dump_yaml(config))
        print(stage.describe(config, member, accept))
        return 0
    trained = stage.run(config, member, args.address, accept)
    how = "trained" if trained else "is done already"
    state = stage.state(config, member)
    print(f"{member} {how}: {state.detail}, snapshot {' '.join(state.outputs)}", file=sys.stdout)
    return 0
