"A file that leaves: loaded without fastai, the same features in both engines, no file that could hold code."
import json
import pickle
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgflkd.errors import InputError


def python(code, *args):
    "Run `code` in a fresh process"
    command = [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope='module')
def net():
    from pgflkd.baseline import Baseline, reid_body
    torch.manual_seed(0)
    return Baseline(reid_body('resnet18', None, stride=16), 5).eval()


@pytest.fixture(scope='module')
def model(net, tmp_path_factory):
    "A student with random weights"
    from pgflkd.deploy import export
    return export(net, tmp_path_factory.mktemp('model')/'student.safetensors', size=(32, 16))


def test_no_fastai(model):
    "The embedder loads and runs where fastai cannot be imported, and imports no pose"
    said = python('''
        import sys
        sys.modules['fastai'] = None
        import torch
        from pgflkd.deploy import load_embedder
        f = load_embedder(sys.argv[1])(torch.rand(3,3,32,16))
        assert f.shape==(3,512) and (f.norm(dim=1)-1).abs().max()<1e-5
        try: load_embedder('nothing.safetensors')
        except ValueError as e: assert 'no such file' in str(e)
        else: raise SystemExit('a missing file was loaded')
        heavy = [m for m in sys.modules if m.startswith('fastai.') or m=='pgflkd.pose']
        assert not heavy, heavy''', model)
    assert said.returncode==0, said.stderr


def test_nothing_heavy_to_import_deploy_and_gallery():
    said = python('''
        import sys
        import pgflkd.gallery
        heavy = {'torch', 'fastai', 'torchvision', 'onnxruntime', 'faiss', 'qdrant_client'} & set(sys.modules)
        assert not heavy, heavy''')
    assert said.returncode==0, said.stderr


class Bomb:
    "Writes a file when it is unpickled"
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')


@pytest.mark.parametrize('name', ['bomb.safetensors', 'bomb.onnx', 'bomb.pth', 'bomb.pt2', 'bomb.pkl', 'bomb'])
@pytest.mark.parametrize('how', ['pickle', 'torch'])
def test_bomb(tmp_path, name, how):
    "A pickle under any name is refused, and what is in it does not run"
    from pgflkd.deploy import load_embedder
    mark, file = tmp_path/'it ran', tmp_path/name
    if how=='pickle': file.write_bytes(pickle.dumps(Bomb(mark)))
    else: torch.save(dict(x=Bomb(mark)), file)
    with pytest.raises(InputError): load_embedder(file)
    assert not mark.exists()
    if how=='pickle':                                        # the bomb was a real one
        pickle.loads(file.read_bytes())
        assert mark.exists()


def test_both_engines_give_the_networks_features(net, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from pgflkd.deploy import export, load_embedder
    file = export(net, tmp_path/'student.safetensors', onnx=True, size=(32, 16), stats=[[.5]*3, [.25]*3])
    x = torch.rand(5, 3, 32, 16)
    with torch.no_grad(): own = torch.nn.functional.normalize(net((x-.5)/.25))
    for kind in ('.safetensors', '.onnx'):
        found = load_embedder(file.with_suffix(kind))(x)
        assert (found-own).abs().max()<=1e-5
    assert oct(file.stat().st_mode)[-2:]==oct(file.with_suffix('.onnx').stat().st_mode)[-2:]     # others may read it


def test_training_learner_is_exported_and_goes_on(tmp_path):
    "What is written of a learner in training is its network in evaluation; the learner stays in training"
    from pgflkd.deploy import export, load_student
    from pgflkd.foreground import Foreground
    from pgflkd.baseline import reid_body
    from pgflkd.network import PGFLKD
    torch.manual_seed(0)
    net = PGFLKD(reid_body('resnet18', None, stride=16), 5, [Foreground(512, 5)]).train()
    class Learner:
        model = net
        class dls: size, stats = (32, 16), [[.5]*3, [.25]*3]
    again = load_student(export(Learner, tmp_path/'student.safetensors'))
    assert net.training and again.card['size']==[32, 16]
    x = torch.randn(2, 3, 32, 16)
    with torch.no_grad(): assert torch.allclose(again(x), net.eval()(x), atol=1e-5)


def test_exif_and_16_bits(model, tmp_path):
    "Deployment sees the pixels that training sees"
    from pgflkd.deploy import load_embedder
    embed = load_embedder(model)
    upright = Image.effect_noise((16, 32), 90).convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    upright.save(tmp_path/'a.png')
    upright.transpose(Image.ROTATE_90).save(tmp_path/'b.png', exif=turned)
    assert np.array_equal(embed.pixels(tmp_path/'a.png'), embed.pixels(tmp_path/'b.png'))
    grey = np.asarray(upright.convert('L'))
    Image.fromarray(grey).save(tmp_path/'c.png')
    Image.fromarray(grey.astype(np.uint16)*256).save(tmp_path/'d.png')
    assert np.array_equal(embed.pixels(tmp_path/'c.png'), embed.pixels(tmp_path/'d.png'))


def test_picture_that_grows(model, tmp_path):
    "A few thousand bytes that claim 60000 x 60000 pixels are refused by name"
    from pgflkd.deploy import load_embedder
    data = b'\x89PNG\r\n\x1a\n'
    head = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    for kind, part in ((b'IHDR', head), (b'IDAT', zlib.compress(bytes(10**5))), (b'IEND', b'')):
        data += struct.pack('>I', len(part)) + kind + part + struct.pack('>I', zlib.crc32(kind+part))
    (tmp_path/'a.png').write_bytes(data)
    with pytest.raises(InputError, match='a.png: cannot be read as a picture'): load_embedder(model)(tmp_path/'a.png')


def onnx_file(path, card, kind=1, size=(32, 16), dim=None):
    "An ONNX file with `card`: input of `kind` and `size`, output flat, or a picture with dim=None"
    onnx = pytest.importorskip('onnx')
    helper = onnx.helper
    x = helper.make_tensor_value_info('x', kind, [None, 3, *size])
    y = helper.make_tensor_value_info('y', kind, [None, 3, *size] if dim is None else [None, dim])
    node  = helper.make_node('Identity' if dim is None else 'Flatten', ['x'], ['y'])
    graph = helper.make_graph([node], 'g', [x], [y])
    made  = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    made.ir_version = 8
    if card is not None:
        entry = made.metadata_props.add()
        entry.key = 'pgflkd'
        entry.value = card if isinstance(card, str) else json.dumps(card)
    onnx.save(made, path)
    return path


CARD = dict(arch='resnet18', stride=16, size=[32, 16], stats=[[.5]*3]*2, width=1536, weights='x')
KINDS = dict(integers=dict(kind=7, dim=1536), other_size=dict(size=(64, 64), dim=12288), not_flat=dict(),
             other_width=dict(size=(32, 8), dim=768), broken_card=dict(card='{x', dim=1536),
             empty_card=dict(card='{}', dim=1536), no_card=dict(card=None, dim=1536))


@pytest.mark.parametrize('kind', KINDS)
def test_onnx_of_another_kind(kind, tmp_path):
    "A file whose input, output or card is not what `export` writes is refused by name"
    pytest.importorskip('onnxruntime')
    from pgflkd.deploy import load_embedder
    good = load_embedder(onnx_file(tmp_path/'good.onnx', CARD, dim=1536))
    assert good(torch.zeros(2, 3, 32, 16)).shape==(2, 1536)
    with pytest.raises(InputError, match='bad.onnx'):
        load_embedder(onnx_file(tmp_path/'bad.onnx', **{'card': CARD, **KINDS[kind]}))


def test_spoilt_files(model, tmp_path):
    "A student file cut off or changed anywhere is refused in one line, or is the same network"
    from pgflkd.deploy import load_student
    whole, rng, refused = model.read_bytes(), np.random.default_rng(0), 0
    start = load_student(model).state_dict()
    for case in range(40):
        spoilt = bytearray(whole)
        at = int(rng.integers(0, 4000 if case%2 else len(whole)))
        if case%4==3: spoilt = spoilt[:at]
        else: spoilt[at] ^= 1 << int(rng.integers(8))
        (tmp_path/'a.safetensors').write_bytes(spoilt)
        try: again = load_student(tmp_path/'a.safetensors').state_dict()
        except InputError as e:
            refused += 1
            assert 'a.safetensors' in str(e) and '\n' not in str(e)
        else: assert all(torch.equal(start[k], again[k]) for k in start if 'neck_g.fc' not in k)
    assert refused>20


def test_the_shipped_student():
    "It is the file its card page names, knows people that it never saw, and holds numbers alone"
    import hashlib
    import pgflkd
    from pgflkd.callbacks import rank_sets
    from pgflkd.deploy import load_embedder
    from pgflkd.synthetic import render_world
    folder = Path(pgflkd.__file__).parent/'weights'
    found = hashlib.sha256((folder/'student.safetensors').read_bytes()).hexdigest()
    assert found in (folder/'README.md').read_text()
    embed = load_embedder('student')
    assert embed.card['licence']=='Apache-2.0' and embed.card['half']
    df = render_world('tiny', seed=1, progress=False)
    test = df[df.role!='train'].reset_index(drop=True)
    ranked = rank_sets(test, torch.as_tensor(embed(list(test.fn))))
    assert ranked['holistic'].mAP>.9 and ranked['occluded'].mAP>.7, ranked
    shuffled = test.assign(pid=np.random.default_rng(0).permutation(test.pid))          # the placebo
    assert rank_sets(shuffled, torch.as_tensor(embed(list(test.fn))))['holistic'].mAP<.5
