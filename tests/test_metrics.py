"""The metrics against the published protocol (Market-1501 as every ReID toolbox evaluates it): sort each row in float64, drop junk and the
query's own camera, walk. Written here from its description. torchreid's own evaluator joins in where that package is installed."""
import importlib.util, warnings
from pathlib import Path
import numpy as np, pytest, torch
from pgflkd.metrics import _block_ranks, _check, _ranking, evaluate_features, evaluate_ranking, pairwise_distance

def protocol(dist, q_pids, g_pids, q_camids, g_camids):
    "CMC, AP of each valid query, AP by trapezoids, INP: float64, one query at a time"
    first, ap, trap, inp = [], [], [], []
    for d,p,c in zip(np.asarray(dist, 'float64'), q_pids, q_camids):
        order = np.argsort(d)
        good  = ((g_pids==p) & (g_camids!=c))[order]
        hits  = good[~(((g_pids==p) & (g_camids==c)) | (g_pids==-1))[order]]
        if p<1 or not hits.any(): continue
        rank = np.flatnonzero(hits)+1.; k = np.arange(1., len(rank)+1)
        before = np.array([(n-1)/(r-1) if r>1 else 1. for n,r in zip(k, rank)])
        first.append(rank[0]); ap.append(np.mean(k/rank)); trap.append(np.mean((k/rank+before)/2)); inp.append(k[-1]/rank[-1])
    return np.array([np.mean(np.array(first)<=r) for r in range(1, len(g_pids)+1)]), np.array(ap), np.array(trap), np.array(inp)

def case(seed, q=200, g=1500, people=60, C=32):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, people, q), rng.integers(-1, people, g), rng.integers(0, 6, q), rng.integers(0, 6, g)
    centre = rng.standard_normal((people+1, C))
    return centre[ids[0]]+rng.standard_normal((q,C)), centre[ids[1]]+rng.standard_normal((g,C)), ids

def agree(r, want, tol=1e-6):
    cmc, ap, trap, inp = want
    for got,w in ((r.cmc, cmc), (r.ap[~np.isnan(r.ap)], ap), (r.ap_trapezoid[~np.isnan(r.ap)], trap), (r.inp[~np.isnan(r.ap)], inp)): np.testing.assert_allclose(got, w, atol=tol, rtol=0)

@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('ties', ['worst','index'])
def test_random_permutations(seed, ties):
    _,_,ids = case(seed)
    dist = np.random.default_rng(seed).permuted(np.tile(np.arange(1500.), (200,1)), axis=1).astype('float32')   # no ties
    agree(evaluate_ranking(dist, *ids, ties=ties), protocol(dist, *ids), 1e-12)
    pos, junk, valid, ties = _check(dist.shape, ids, ties)                       # the way a GPU goes, here on the CPU
    agree(_ranking(_block_ranks(torch.tensor(dist if valid is None else dist[:,valid]), pos, junk, ties), 1500), protocol(dist, *ids), 1e-12)

@pytest.mark.parametrize('memory', [1, 10**5, 2**30])
@pytest.mark.parametrize('metric', ['cosine','euclidean'])
def test_features(memory, metric):
    q,g,ids = case(7)
    unit = lambda x: x/np.linalg.norm(x, axis=1, keepdims=True)
    d = -unit(q)@unit(g).T if metric=='cosine' else ((q[:,None]-g)**2).sum(2)    # float64
    agree(evaluate_features(q, g, *ids, memory=memory, metric=metric), protocol(d, *ids), 5e-4)   # a float32 rounding may swap two pictures of one query
    r = evaluate_features(q, g, *ids, memory=memory, metric=metric)
    assert abs(r.mAP-protocol(d, *ids)[1].mean())<1e-6 and abs(r.mAP_trapezoid-protocol(d, *ids)[2].mean())<1e-6

@pytest.mark.parametrize('C', [1, 7, 64, 513, 2048])
@pytest.mark.parametrize('threads', [1, 2])
def test_constant_features_score_as_badly_as_can_be(C, threads):
    "In a gallery sorted by person, sizes that fill no block of a matrix product"
    before = torch.get_num_threads(); torch.set_num_threads(threads)
    try:
        for q,n in ((1,37), (7,1003), (50,3001)):
            g_pids = np.sort(np.arange(n)%20+1); f = np.random.default_rng(C).standard_normal((1,C)).astype('float32')
            for metric in ('cosine','euclidean'):
                r = evaluate_features(f.repeat(q,0), f.repeat(n,0), np.arange(q)%20+1, g_pids, np.zeros(q, int), np.ones(n, int), metric=metric)
                assert r.rank1==0 and r.mAP<(.06 if n>100 else .1) and (r.ap<=1).all()
                count = np.bincount(g_pids)[np.arange(q)%20+1]
                np.testing.assert_allclose(r.ap, [np.mean(np.arange(1,c+1)/np.arange(n-c+1,n+1)) for c in count], atol=1e-12)   # after everybody else
    finally: torch.set_num_threads(before)

def torchreid_evaluator():
    "torchreid's `eval_market1501`, read from its file: its package imports half a training stack"
    spec = importlib.util.find_spec('torchreid')
    for root in (spec.submodule_search_locations if spec else []):
        for path in Path(root).rglob('metrics/rank.py'):
            rank = importlib.util.spec_from_file_location('torchreid_rank', path); module = importlib.util.module_from_spec(rank)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore'); rank.loader.exec_module(module)
            return module.eval_market1501

@pytest.mark.parametrize('seed', range(3))
def test_torchreid(seed):
    f = torchreid_evaluator()
    if f is None: pytest.skip('torchreid is not installed: pip install --no-deps torchreid==0.2.5')
    q,g,ids = case(seed)
    keep = ids[1]>-1                                                     # torchreid leaves junk to its data readers
    ids = ids[0], ids[1][keep], ids[2], ids[3][keep]
    dist = pairwise_distance(q, g[keep])
    cmc, mAP = f(dist.numpy().astype('float64'), *ids, 50)
    r = evaluate_ranking(dist, *ids, ties='index')
    assert abs(r.mAP-mAP)<1e-6
    np.testing.assert_allclose(r.cmc[:50], cmc, atol=1e-6)
