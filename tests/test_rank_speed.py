"""Speed and memory of the evaluation, as ratios of CPU time in one process and one thread. Each query keeps
Occluded-Duke's gallery of 17,661 pictures; there are fewer queries than its 2,210, which changes no ratio: all ways
take time in proportion to them. `results/rank` has it in full, and beside torchreid's compiled evaluator."""
import ctypes
import os
import re
import time
from pathlib import Path
import numpy as np
import pytest
import torch
from pgflkd.metrics import evaluate_features, evaluate_ranking, pairwise_distance

# 25 pictures a person, 8 cameras seen by threes: about 17 to find, 8 of the own camera
Q, G = 221, 17661
PEOPLE, C = 700, 512

@pytest.fixture(scope='module')
def case():
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    home = rng.permuted(np.tile(np.arange(8), (PEOPLE+1,1)), axis=1)
    q_pids = rng.integers(1, PEOPLE+1, Q)
    g_pids = np.sort(np.r_[np.arange(1, PEOPLE+1), rng.integers(1, PEOPLE+1, G-PEOPLE)])
    centre = rng.standard_normal((PEOPLE+1, C), dtype='float32')*.4
    def features(pid):
        return torch.from_numpy(centre[pid] + rng.standard_normal((len(pid), C), dtype='float32'))
    def cameras(pid):
        return home[pid, rng.integers(0, 3, len(pid))]
    q, g = features(q_pids), features(g_pids)
    return q, g, (q_pids, g_pids, cameras(q_pids), cameras(g_pids)), pairwise_distance(q, g).numpy()

def seconds(f, repeats=5):
    res = []
    for _ in range(repeats):
        start = time.process_time()
        out = f()
        res.append(time.process_time()-start)
    return min(res), out

def by_sorting(dist, q_pids, g_pids, q_camids, g_camids):
    """The usual way, in our words: argsort of everything, then Python along each row (a NumPy integer divided by a
    Python float, as toolboxes do)"""
    order, aps = np.argsort(dist, axis=1), []
    hit = (g_pids[order]==q_pids[:,None]).astype('int32')
    for i,row in enumerate(order):
        marks = hit[i][~((g_pids[row]==q_pids[i]) & (g_camids[row]==q_camids[i]))]
        if not marks.any(): continue
        found = marks.cumsum()
        aps.append((np.array([n/(r+1.) for r,n in enumerate(found)])*marks).sum()/found[-1])
    return np.mean(aps)

def status(key):
    "What the kernel says of this process under `key`, in KiB"
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1])

def grown(f):
    "KiB of resident memory that a second `f` adds at its peak"
    f()
    ctypes.CDLL(None).malloc_trim(0)
    base = status('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    f()
    return status('VmHWM')-base

def peak(f):
    "MiB of resident memory that `f` needs at its peak, in a copy of this process"
    if not Path('/proc/self/clear_refs').exists(): pytest.skip('peak memory is read from /proc')
    r,w = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(w, str(grown(f)).encode())
        finally:
            os._exit(0)
    os.close(w)
    with os.fdopen(r) as o:
        kib = o.read()
    os.waitpid(pid, 0)
    return int(kib)/1024

def test_ranking_50x(case):
    *_,ids,dist = case
    ours, r = seconds(lambda: evaluate_ranking(dist, *ids))
    some = slice(0, 30)                                                  # the loop is slow: 30 queries of it
    loop, mAP = seconds(lambda: by_sorting(dist[some], ids[0][some], ids[1], ids[2][some], ids[3]), 1)
    assert abs(np.nanmean(r.ap[some])-mAP)<1e-6
    assert loop/30 >= 50*ours/Q, f'{loop/30/(ours/Q):.0f}x'

def test_ranking_3x_argsort(case):
    """The stable sort takes no vector instructions, whatever the CPU; where NumPy's default takes them it needs a
    quarter of that. torchreid's compiled evaluator starts with the default and takes longer"""
    *_,ids,dist = case
    ours = seconds(lambda: evaluate_ranking(dist, *ids))[0]
    argsort = seconds(lambda: np.argsort(dist, axis=1, kind='stable'), 2)[0]
    assert argsort >= 3*ours, f'{argsort/ours:.1f}x'
    assert seconds(lambda: np.argsort(dist, axis=1), 3)[0] >= 1.5*ours

@pytest.mark.slow
def test_torchreid_cython_5x(case):
    why = 'torchreid with its compiled evaluator is not installed'
    cython = pytest.importorskip('torchreid.metrics.rank_cylib.rank_cy', reason=why)
    *_,ids,dist = case
    theirs = seconds(lambda: cython.evaluate_cy(dist, *ids, 50), 2)[0]
    assert theirs >= 5*seconds(lambda: evaluate_ranking(dist, *ids))[0]

def in_turn(f, g, repeats=5):
    "The median CPU time of `f` as a share of that of `g`, measured in turn because the load changes"
    pairs = [(seconds(f, 1)[0], seconds(g, 1)[0]) for _ in range(repeats)]
    ours, theirs = np.median(pairs, axis=0)
    return ours/theirs

def test_end_to_end_is_hardly_more_than_the_product(case):
    "At Occluded-Duke's width: the product is 2048 wide there, so it is here. A busy machine has three tries"
    q,g,ids,_ = case
    q,g = q.repeat(1,4), g.repeat(1,4)
    ratios = []
    for _ in range(3):
        ratios.append(in_turn(lambda: evaluate_features(q, g, *ids), lambda: q@g.T))
        if ratios[-1]<=1.3: break
    assert min(ratios)<=1.3, ratios

@pytest.mark.slow
def test_memory_a_fifth(case):
    """Both at Occluded-Duke's 2,210 queries: a matrix of distances and a matrix of 64-bit indices is the least that
    sorting everything takes"""
    q,g,ids,_ = case
    n = 2210//Q
    q, g = q[:,:64].repeat(n,1), g[:,:64].contiguous()
    ids = np.tile(ids[0], n), ids[1], np.tile(ids[2], n), ids[3]
    ours = peak(lambda: evaluate_features(q, g, *ids))
    theirs = peak(lambda: np.argsort((-q@g.T).numpy(), axis=1))
    assert ours <= theirs/5, (ours, theirs)
