"What makes a training fast changes no number of it; benchmarks live in results/bench"
import pytest, torch
from torch import nn
pytestmark = pytest.mark.slow

def small_body():
    "Two convolutions of a network that compiles in seconds"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

def test_compiled_body_computes_the_same():
    body, x = small_body(), torch.randn(4,3,32,16)
    state = {k: v.clone() for k,v in body.state_dict().items()}
    plain = body.train()(x)
    body.load_state_dict(state)
    body.compile()                                     # as `learn.to_fast(compile=True)` does
    try: fast = body(x)
    except Exception as e: pytest.skip(f'this machine cannot compile: {type(e).__name__}')
    assert (fast-plain).abs().max()<1e-5               # joined operations round otherwise
    assert list(body.state_dict())==list(state)        # names stay, so files do

def test_painter_says_that_it_hears_nothing():
    "A painter that heard no maps must refuse to train, whatever silenced it"
    from pgflkd.baseline import reid_body
    from pgflkd.errors import InputError
    from pgflkd.san import Painter
    from torchvision.models import resnet18
    painter = Painter(reid_body(resnet18, None, 8), size=16)
    with pytest.raises(InputError, match='heard no maps'): painter(None, None, None)
