"""MobileNetV2's ImageNet weights as a TensorFlow export gives them, in the plain torchvision layout.

    python results/student/convert.py mobilenet_v2_imagenet_fp16.pth converted.safetensors

Three things differ. The old network took pictures in [-1,1]: that is folded into the first convolution. Its BatchNorms
were folded into the convolutions: they get the statistics of rendered people, and a weight and a bias that undo them.
It padded halving convolutions on one side (SAME): a plain convolution pads both sides, which shifts the picture by half
a pixel, and fine-tuning takes that along.
"""
import numpy as np
import torch
from fastai.vision.core import imagenet_stats
from fastcore.script import call_parse
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2

from pgflkd.baseline import load_weights, read_weights, reid_body
from pgflkd.files import open_picture
from pgflkd.synthetic import render_world

@torch.no_grad()
def take_normalised(body):
    "Let the first convolution of `body`, made for pictures in [-1,1], take those normalised by ImageNet's statistics"
    mean, std = (torch.tensor(o) for o in imagenet_stats)
    conv, bn = body[0][0], body[0][1]
    bn.running_mean -= (conv.weight.sum((2, 3))*(2*mean-1)).sum(1)
    conv.weight *= 2*std[:, None, None]

@torch.no_grad()
def unfold_batchnorm(body, x):
    "Give each BatchNorm of `body` the statistics of what reaches it for `x`, and undo them in its weight and bias"
    norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
    seen = {}
    def note(norm, inputs): seen[norm] = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
    hooks = [m.register_forward_pre_hook(note) for m in norms]
    body.eval()(x)
    for hook in hooks: hook.remove()
    for m in norms:
        var, mean = seen[m]
        scale = m.weight/(m.running_var+m.eps).sqrt()          # it computes scale*(x-running_mean) + bias
        m.bias += scale*(mean-m.running_mean)
        m.weight.copy_(scale*(var+m.eps).sqrt())
        m.running_mean.copy_(mean)
        m.running_var.copy_(var)

def pictures(n=256):
    "`n` rendered people (n,3,128,64), normalised"
    files = render_world('small', seed=900).fn[::10][:n]
    x = torch.from_numpy(np.stack([np.asarray(open_picture(f)) for f in files])).permute(0, 3, 1, 2)/255
    mean, std = (torch.tensor(o)[:, None, None] for o in imagenet_stats)
    return (x-mean)/std

@call_parse
def main(
    old:str, # .pth with the old weights
    new:str, # .safetensors to write
):
    "Convert the file `old` to the file `new`"
    body = reid_body(mobilenet_v2, None, 8)
    load_weights(body, {k: v.float() for k, v in read_weights(old).items()}, old)
    take_normalised(body)
    x = pictures()
    before = body.eval()(x).detach()
    unfold_batchnorm(body, x)
    change = (body.eval()(x)-before).abs().max()/before.abs().max()
    print(f'undoing BatchNorm changes the map by {change:.1e} of its largest value')
    save_file({f'features.{k}': v.half() for k, v in body.state_dict().items()}, new)
