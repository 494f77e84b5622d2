"""What stands in results/rank, measured again, one thread, CPU time, from a clean checkout:

    OMP_NUM_THREADS=1 python results/rank/run.py rank million embed profile search frontier engines [--note 'what else the machine is doing']
    OMP_NUM_THREADS=1 python results/rank/run.py int8 --model STUDENT.safetensors        a network trained on render_world('small', seed=0)

Needs the extras `search` and `deploy`. Such a network is kept by
`run_plan(plan_rows('baseline'), ['small'], [0], Recipe(stride=16), OUT, WORK, keep=True)` of pgflkd.commands.ablate.
`rank` compares with torchreid's compiled evaluator too, if its `rank_cy` can be imported: `python setup.py build_ext --inplace` in its torchreid/metrics/rank_cylib, and that folder on PYTHONPATH."""
import argparse, tempfile
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from pgflkd.bench import run_bench
from pgflkd.records import add_rows, run_facts

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('what', nargs='+', choices=['rank','million','embed','search','frontier','engines','int8','profile'])
p.add_argument('--note', default=''); p.add_argument('--model'); p.add_argument('--out', type=Path, default=Path(__file__).parent)
p.add_argument('--only', help='engines: those whose name holds this')
args = p.parse_args()
torch.set_num_threads(1)
facts = lambda: run_facts(torch.device('cpu'))

def processor():
    "Its name, and the instructions that decide how fast few bits are"
    caps = getattr(torch.cpu, 'get_capabilities', dict)()
    return ', '.join([caps.get('cpu_name', 'unknown'), *(k for k in ('avx2','avx512_f','avx512_vnni','avx512_bf16','amx_int8','amx_bf16') if caps.get(k))])

def keep(name, rows, on):
    rows = rows.assign(cpu=processor(), note=args.note)
    add_rows(args.out/f'{name}.csv', rows, on=on)
    print(rows.round(4).to_string(), flush=True)

def engines():
    "Every engine over the same 100,000 vectors; one that fails is named with its reason"
    from pgflkd.engines import ENGINES, compare_engines
    for name in [o for o in ENGINES if (args.only or '') in o]:
        try: rows = compare_engines(100_000, 512, [name], queries=50, limit=100_000)
        except Exception as e: rows = pd.DataFrame([dict(engine=name, setting='failed', n=100_000, dim=512, failed=f'{type(e).__name__}: {str(e)[:200]}')])
        keep('engines', rows.assign(seed=0, **facts()), ['engine','setting','n','dim'])

def int8():
    "What eight bits cost a trained network on its own world"
    from pgflkd.deploy import int8_cost, load_embedder, load_torch, quantize, to_onnx
    from pgflkd.records import PROTOCOL
    from pgflkd.synthetic import render_world
    net, card = load_torch(args.model)
    df = render_world('small', seed=0, progress=False)
    train = df[df.role=='train'].fn.tolist()
    with tempfile.TemporaryDirectory() as d:
        fp32, small = Path(d)/'a.onnx', Path(d)/'a.int8.onnx'
        to_onnx(net, fp32, card)
        embed = load_embedder(fp32)
        quantize(fp32, torch.stack([embed.pixels(train[i]) for i in np.linspace(0, len(train)-1, 200).astype(int)]), small)
        rows = pd.DataFrame(int8_cost(fp32, small, df[df.role!='train']))
        rows['MiB_fp32'], rows['MiB_int8'] = (o.stat().st_size/2**20 for o in (fp32, small))
    keep('int8', rows.assign(arch=card['arch'], size='x'.join(map(str, card['size'])), weights=card['weights'], world='small', seed=0, calibration='200 training pictures', protocol=PROTOCOL, **facts()), ['query_set','arch','weights'])

def profile():
    "Where onnxruntime spends its time on one picture, in 32 and in 8 bits"
    import json, onnxruntime as ort
    from pgflkd.deploy import Student, quantize, to_onnx
    torch.manual_seed(0)
    card = dict(arch='resnet50', stride=16, same_padding=False, size=[384,128], stats=[[.5]*3,[.25]*3], dim=2048)
    rows, x = [], torch.rand(16, 3, 384, 128)
    with tempfile.TemporaryDirectory() as d:
        to_onnx(Student(card).eval(), Path(d)/'fp32', card); quantize(Path(d)/'fp32', x, Path(d)/'int8')
        for bits in ('fp32','int8'):
            opt = ort.SessionOptions(); opt.intra_op_num_threads, opt.log_severity_level, opt.enable_profiling, opt.profile_file_prefix = 1, 3, True, f'{d}/{bits}-profile'
            s = ort.InferenceSession(str(Path(d)/bits), opt, providers=['CPUExecutionProvider'])
            for _ in range(6): s.run(None, {'picture': x[:1].numpy()})
            t = pd.DataFrame([dict(op=o['args'].get('op_name'), wall_ms=o['dur']/1e3, start=o['ts']) for o in json.loads(Path(s.end_profiling()).read_text()) if o.get('cat')=='Node' and o['name'].endswith('kernel_time')])
            each = len(t)//6
            t = t.iloc[each:].groupby('op').wall_ms.sum()/5
            rows.append(pd.DataFrame(dict(bits=bits, op=t.index, wall_ms=t.values, share=t.values/t.sum())).sort_values('wall_ms', ascending=False))
    keep('int8_profile', pd.concat(rows).assign(arch='resnet50', size='384x128', bs=1, **facts()), ['bits','op'])

for what in args.what:
    if   what=='engines': engines()
    elif what=='profile': profile()
    elif what=='int8': int8()
    elif what=='rank':
        try: from rank_cy import evaluate_cy
        except ImportError: evaluate_cy = None
        keep('rank', run_bench('rank', cython=evaluate_cy), ['stage','method'])
    elif what=='million':  keep('million', run_bench('million'), ['queries','gallery','C'])
    elif what=='embed':    keep('embed', run_bench('embed', compile=True), ['way','arch','size','bs'])
    elif what=='search':   keep('search', run_bench('search'), ['method','n','dim'])
    elif what=='frontier':
        from pgflkd.engines import bench_frontier
        for noise in (2., 3.): keep('million_search', bench_frontier(noise=noise).assign(**facts()), ['method','n','dim','features'])
