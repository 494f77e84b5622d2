"""An exact search by numpy and by FAISS: CPU seconds of one thread for a query, and for 64 at once.

    pip install faiss-cpu && python results/rank/exact.py            # writes exact.csv
"""
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

from pgflkd.records import run_facts

ROWS, WIDTH, K, TIMES = 300_000, 512, 10, 7

def numpy_search(gallery, queries):
    "Rows of the `K` nearest of each query by `numpy`"
    scores = queries@gallery.T
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
    return np.take_along_axis(best, order, 1)

def seconds(search, queries):
    "Median time of `search`"
    times = []
    for _ in range(TIMES):
        start = time.process_time()
        search(queries)
        times.append(time.process_time()-start)
    return float(np.median(times))

if __name__=='__main__':
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery)
    ways = {'numpy': lambda q: numpy_search(gallery, q), 'FAISS IndexFlatIP': lambda q: index.search(q, K)[1]}
    rows = []
    for n in (1, 64):
        queries = gallery[rng.integers(0, ROWS, n)]
        found = [way(queries) for way in ways.values()]
        assert (found[0][:, 0]==found[1][:, 0]).all()          # both are exact
        facts = dict(rows=ROWS, width=WIDTH, queries=n, faiss=faiss.__version__, **run_facts('cpu'))
        rows += [dict(way=name, seconds=seconds(way, queries), **facts) for name, way in ways.items()]
    pd.DataFrame(rows).to_csv(Path(__file__).with_suffix('.csv'), index=False)
    print(pd.DataFrame(rows)[['way', 'queries', 'seconds']])
