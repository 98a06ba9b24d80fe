#!/usr/bin/env python
"""Put the weights of a finished training beside its config, with its log.

    python tools/dev/ship_weights.py configs/quickstart/NAME.py work_dirs/NAME

writes configs/quickstart/weights/NAME.pth, the weights alone, and NAME.json, the training's log. The
weights are stored as halves if that changes no digit of the metrics of the training's last validation,
which it repeats with both.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path, help='of the training')
    parser.add_argument('work_dir', type=Path, help='of the training')
    parser.add_argument('--float32', action='store_true', help='store no halves')
    args = parser.parse_args()

    import torch

    from rawkd_mm.analysis.evaluation import evaluate
    from rawkd_mm.analysis.pictures import read_checkpoint
    from rawkd_mm.analysis.training_logs import NOT_METRICS, read_scalars
    from rawkd_mm.training import load_config

    cfg = load_config(str(args.config))
    log = list(read_scalars(args.work_dir))
    last = log[-1]
    logged = {name: value for name, value in last.items() if name not in NOT_METRICS}
    if 'loss' in last or not logged:
        sys.exit(f'{args.work_dir}: the log does not end with a validation')
    checkpoint = (args.work_dir / 'last_checkpoint').read_text().strip()
    state = read_checkpoint(checkpoint)['state_dict']

    out = args.config.parent / 'weights' / f'{args.config.stem}.pth'
    out.parent.mkdir(exist_ok=True)
    for dtype in (torch.float32,) if args.float32 else (torch.float16, torch.float32):
        stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        meta = dict(config=args.config.name, iterations=last['step'], metrics=logged)
        torch.save(dict(meta=meta, state_dict=stored), out)
        got = evaluate(cfg, str(out), 'cpu', lambda *_: None).metrics
        print(f'{dtype}: {out.stat().st_size / 1e6:.2f} MB, {got}')
        if all(f'{got[name]:.4f}' == f'{value:.4f}' for name, value in logged.items()):
            break
    else:
        out.unlink()
        sys.exit(f'the training logged {logged}, and its weights give {got}')
    lines = ''.join(json.dumps(entry) + '\n' for entry in log)
    out.with_suffix('.json').write_text(lines, encoding='utf-8')
    print(f'{out} and {out.with_suffix(".json").name}: {logged}')


if __name__ == '__main__':
    main()
