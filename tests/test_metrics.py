"""The metrics against the published protocol (Market-1501 as every ReID toolbox evaluates it): sort each row in
float64, drop junk and the query's own camera, walk. Written here from its description. torchreid's own evaluator
joins in where that package is installed."""
import importlib.util
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from pgflkd.metrics import evaluate_features, evaluate_ranking, pairwise_distance, top_k

def found_at(d, p, c, g_pids, g_camids):
    "The ranks, from 1, at which the person `p` of camera `c` is found by the distances `d`"
    order = np.argsort(d)
    good = ((g_pids==p) & (g_camids!=c))[order]
    hits = good[~(((g_pids==p) & (g_camids==c)) | (g_pids==-1))[order]]
    return np.flatnonzero(hits)+1.

def protocol(dist, q_pids, g_pids, q_camids, g_camids):
    "CMC, AP of each valid query, AP by trapezoids, INP: float64, one query at a time"
    queries = []
    for d, p, c in zip(np.asarray(dist, 'float64'), q_pids, q_camids):
        rank = found_at(d, p, c, g_pids, g_camids)
        if p<1 or not len(rank): continue
        k = np.arange(1., len(rank)+1)
        before = np.array([(n-1)/(r-1) if r>1 else 1. for n,r in zip(k, rank)])
        queries.append((rank[0], np.mean(k/rank), np.mean((k/rank+before)/2), k[-1]/rank[-1]))
    first, *rest = np.array(queries).T
    return np.array([np.mean(first<=r) for r in range(1, len(g_pids)+1)]), *rest

def case(seed, q=200, g=1500, people=60, C=32):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, people, q), rng.integers(-1, people, g), rng.integers(0, 6, q), rng.integers(0, 6, g)
    centre = rng.standard_normal((people+1, C))
    return centre[ids[0]]+rng.standard_normal((q,C)), centre[ids[1]]+rng.standard_normal((g,C)), ids

def agree(r, want, tol=1e-6):
    valid = ~np.isnan(r.ap)
    for got, w in zip((r.cmc, r.ap[valid], r.ap_trapezoid[valid], r.inp[valid]), want, strict=True):
        np.testing.assert_allclose(got, w, atol=tol, rtol=0)

@pytest.mark.parametrize('seed', range(6))
def test_random_permutations(seed):
    _,_,ids = case(seed)
    without_ties = np.tile(np.arange(1500.), (200,1))
    dist = np.random.default_rng(seed).permuted(without_ties, axis=1).astype('float32')
    agree(evaluate_ranking(dist, *ids), protocol(dist, *ids), 1e-12)
    agree(evaluate_ranking(torch.tensor(dist), *ids), protocol(dist, *ids), 1e-12)

@pytest.mark.parametrize('name', ['{:04d}'.format, 'person {}'.format])
def test_people_and_cameras_may_be_text(name):
    "Digits are read, names are numbered; -1 and 0 stay junk and distractors; lists and objects as well as arrays"
    q, g, ids = case(3)
    people = [[name(o) if o>0 else str(o) for o in side] for side in ids[:2]]
    cameras = [np.array([f'c{o}' for o in side], object) for side in ids[2:]]
    text, number = evaluate_features(q, g, *people, *cameras), evaluate_features(q, g, *ids)
    for k in ('cmc','first','ap','ap_trapezoid','inp'):
        np.testing.assert_array_equal(getattr(text, k), getattr(number, k))
    dist = pairwise_distance(q, g)
    np.testing.assert_array_equal(top_k(dist, *people, *cameras), top_k(dist, *ids))

@pytest.mark.parametrize('at', range(4))
def test_what_cannot_be_used_is_said_in_one_line(at):
    q, g, ids = case(3)
    n = len(ids[at])
    some_missing = ['a','b']+[None]*(n-2)
    for wrong, why in ((None, 'has shape'), ([1], 'has shape'), ([None]*n, 'is missing'), (some_missing, 'is missing')):
        given = [*ids[:at], wrong, *ids[at+1:]]
        with pytest.raises(ValueError, match=why):
            evaluate_features(q, g, *given)

@pytest.mark.parametrize('value', [np.nan, np.inf, 1e30])
@pytest.mark.parametrize('side', [0, 1])
def test_features_that_cannot_be_compared_are_refused(value, side):
    q, g, ids = case(3)
    (q, g)[side][120,5] = value
    with pytest.raises(ValueError, match='not finite, or too large to square'):
        evaluate_features(q.astype('float32'), g.astype('float32'), *ids)

def test_distractors_among_names_are_nobody():
    "0000, as the folder readers take it: a query of it is not asked, and the others are ranked as before"
    far = np.array([[.1, .2, .3], [.1, .2, .3]])
    for nobody in ('0', '0000'):
        r = evaluate_ranking(far, [nobody, 'bob'], [nobody, 'bob', 'ann'], ['a', 'a'], ['b', 'b', 'b'])
        assert r.n_valid==1 and r.first[1]==2


def unit(x):
    return x/np.linalg.norm(x, axis=1, keepdims=True)

@pytest.mark.parametrize('memory', [1, 10**5, 2**30])
@pytest.mark.parametrize('metric', ['cosine','euclidean'])
def test_features(memory, metric):
    q,g,ids = case(7)
    d = -unit(q)@unit(g).T if metric=='cosine' else ((q[:,None]-g)**2).sum(2)    # float64
    r = evaluate_features(q, g, *ids, memory=memory, metric=metric)
    want = protocol(d, *ids)
    agree(r, want, 5e-4)                      # a float32 rounding may swap two pictures of one query
    assert abs(r.mAP-want[1].mean())<1e-6 and abs(r.mAP_trapezoid-want[2].mean())<1e-6

@pytest.fixture(params=[1, 2])
def threads(request):
    "That many threads, and afterwards as many as before"
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

@pytest.mark.parametrize('C', [1, 7, 64, 513, 2048])
def test_constant_features_score_as_badly_as_can_be(C, threads):
    "In a gallery sorted by person, sizes that fill no block of a matrix product"
    f = np.random.default_rng(C).standard_normal((1,C)).astype('float32')
    for q, n in ((1,37), (7,1003), (50,3001)):
        q_pids, g_pids = np.arange(q)%20+1, np.sort(np.arange(n)%20+1)
        ids = q_pids, g_pids, np.zeros(q, int), np.ones(n, int)
        count = np.bincount(g_pids)[q_pids]
        after_everybody_else = [np.mean(np.arange(1,c+1)/np.arange(n-c+1,n+1)) for c in count]
        for metric in ('cosine','euclidean'):
            r = evaluate_features(f.repeat(q,0), f.repeat(n,0), *ids, metric=metric)
            assert r.rank1==0 and r.mAP<(.06 if n>100 else .1) and (r.ap<=1).all()
            np.testing.assert_allclose(r.ap, after_everybody_else, atol=1e-12)

def torchreid_evaluator():
    "torchreid's `eval_market1501`, read from its file: its package imports half a training stack"
    spec = importlib.util.find_spec('torchreid')
    for root in (spec.submodule_search_locations if spec else []):
        for path in Path(root).rglob('metrics/rank.py'):
            rank = importlib.util.spec_from_file_location('torchreid_rank', path)
            module = importlib.util.module_from_spec(rank)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                rank.loader.exec_module(module)
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
    r = evaluate_ranking(dist, *ids)
    assert abs(r.mAP-mAP)<1e-6
    np.testing.assert_allclose(r.cmc[:50], cmc, atol=1e-6)
