"""Engine comparison again, on an idle machine: OMP_NUM_THREADS=1 python results/rank/run.py   (needs the extras `search` and `deploy`)"""
from pathlib import Path
import torch
from pgflkd.engines import ENGINES, compare_engines
from pgflkd.runs import add_rows, run_facts

torch.set_num_threads(1)
for name in ENGINES:
    rows = compare_engines(100_000, 512, [name], queries=50).assign(**run_facts(torch.device('cpu')), seed=0, note='')
    add_rows(Path(__file__).parent/'engines.csv', rows, on=['engine','setting','n','dim'])
    print(rows[['engine','setting','n','recall10','query_cpu_ms','build_cpu_s']].to_string(), flush=True)
