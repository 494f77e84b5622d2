"The demo: what is dragged is what the network gets; and, where there is a browser, a real mouse."
import base64
import importlib.util
import io
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pgflkd.errors import InputError

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location('demo', ROOT/'examples/demo.py')
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
GREY = Image.new('RGB', (64, 128), '#808080')


def changed(**box): return (np.array(demo.put_obstacle(GREY, **box))!=128).any(2)


def test_obstacle_lies_where_its_box_is():
    at = changed(kind='wall', left=.25, top=.5, width=.5, height=.25)
    assert at[66:94, 18:46].mean()>.95                                            # it is there
    at[64:96, 16:48] = False
    assert not at.any()                                                           # and nowhere else
    assert not changed(kind='nothing').any() and not changed(left=2).any() and not changed(width=0).any()
    assert changed(left=-1.5)[:, :32].any() and not changed(left=-1.5)[:, 48:].any()    # it sticks out on the left
    with pytest.raises(InputError, match='cow: no known obstacle; take one of car'): demo.put_obstacle(GREY, 'cow')


def test_what_you_drag_is_what_the_network_gets():
    html = demo.stage(GREY, 'car', **demo.BOX)
    assert 'left:-60.0%;top:55.0%;width:220.0%;height:45.0%;' in html
    shown = [Image.open(io.BytesIO(base64.b64decode(o.split('"')[0]))) for o in html.split('base64,')[1:]]
    assert [o.size for o in shown]==[(64, 128), (141, 58)]
    assert np.array_equal(shown[1], demo.obstacle('car', (58, 141)))


def made(folder):
    "A student and a gallery of seven pictures with names of the rendered world"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export, load_student
    from pgflkd.gallery import Gallery
    torch.manual_seed(0)
    net = Baseline(reid_body('resnet18', None, stride=16), 5)
    with torch.no_grad(): net.train()(torch.randn(16, 3, 64, 32))
    file = export(net.eval(), folder/'student.safetensors', size=(64, 32))
    names = [folder/f'000{i}_c0_t00000_00000{i}.png' for i in range(7)]
    for i, name in enumerate(names): Image.effect_noise((32, 64), 20*i+20).convert('RGB').save(name)
    gallery = Gallery.create(folder/'g', file)
    gallery.add(names, pd.DataFrame(dict(fn=map(str, names), pid=range(7), camid=0)))
    return load_student(file), gallery, names


def test_answer(tmp_path):
    "A car changes feature and cosine, nothing does not; the page says whose pictures it shows"
    student, gallery, names = made(tmp_path)
    picture = Image.open(names[3])
    free = demo.answer(gallery, student, picture, kind='nothing', **demo.BOX)
    hidden = demo.answer(gallery, student, picture, kind='car', **demo.BOX)
    assert free[3]>.9999>hidden[3] and free[1].size==picture.size and hidden[2].size==free[2].size
    assert 'rendered' in demo.who_is_shown(gallery)
    gallery.add(names[0])
    assert 'rendered' in demo.who_is_shown(gallery)
    gallery.add([picture])
    assert '9 pictures that were given' in demo.who_is_shown(gallery)


def test_page_is_made():
    pytest.importorskip('gradio', reason='gradio is not installed: pip install gradio')
    from pgflkd.gallery import Gallery
    import tempfile
    empty = Gallery.create(Path(tempfile.mkdtemp())/'g', dim=4)
    assert demo.make_app(empty, None).analytics_enabled is False


CALLS = '''
import os, sys, time
sys.path.append({extra!r})
hosts = set()
def note(event, args):
    if event=='socket.getaddrinfo': hosts.add(str(args[0]))
    if event=='socket.connect' and isinstance(args[1], tuple): hosts.add(str(args[1][0]))
sys.addaudithook(note)
sys.path.insert(0, {examples!r})
import demo, gradio
gradio.Blocks.launch = lambda self, _real=gradio.Blocks.launch, **k: _real(self, prevent_thread_lock=True, **k)
demo.demo_command.__wrapped__({gallery!r}, port={port})
time.sleep(3)                                  # what would call, calls by now
print('HOSTS', sorted(hosts-{{'127.0.0.1', 'localhost', '0.0.0.0', '::1', 'None'}}), flush=True)
os._exit(0)
'''


def test_demo_calls_nobody(tmp_path):
    "It prints its address and whom it shows, and no host but this one is asked for anything; a busy port is refused"
    pytest.importorskip('gradio', reason='gradio is not installed: pip install gradio')
    made(tmp_path)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
        s.listen()
        with pytest.raises(InputError, match='another program uses it'): demo.check_free(port)
    code = CALLS.format(extra='', examples=str(ROOT/'examples'), gallery=str(tmp_path/'g'), port=port)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300)
    assert f'The page is at http://127.0.0.1:{port}' in done.stdout and 'rendered' in done.stdout, done.stderr
    assert 'HOSTS []' in done.stdout, done.stdout+done.stderr


def test_a_file_that_is_gone_is_grey(tmp_path):
    student, gallery, names = made(tmp_path)
    picture = Image.open(names[3]).copy()
    for name in names: name.unlink()
    assert demo.answer(gallery, student, picture, kind='nothing', **demo.BOX)[3]>.9999


def test_a_newer_student_under_the_old_name_is_refused(tmp_path):
    "The gallery has its own network as ONNX and still answers; the response on the page would be another network's"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export
    student, gallery, _ = made(tmp_path)
    same, again = demo.open_both(tmp_path/'g')
    assert len(same)==len(gallery) and again.card['weights']==student.card['weights']
    export(student, tmp_path/'g/network.onnx')
    torch.manual_seed(1)
    export(Baseline(reid_body('resnet18', None, stride=16), 5).eval(), tmp_path/'student.safetensors', size=(64, 32))
    with pytest.raises(InputError, match='features of another network'): demo.open_both(tmp_path/'g')


@pytest.mark.slow
def test_demo_is_driven():
    "In a real browser: drop a picture, drag the car and a slider; ranking, response and cosine change each time"
    pytest.importorskip('gradio', reason='gradio is not installed: pip install gradio')
    pytest.importorskip('selenium', reason='selenium is not installed: pip install selenium')
    lost = [o for o in ('chromium', 'chromedriver') if shutil.which(o) is None]
    if lost: pytest.skip(f'{" and ".join(lost)} not found: apt-get install chromium chromium-driver')
    sys.path.insert(0, str(ROOT/'tools'))
    from drive_demo import drive
    told = drive()
    assert len(set(told))==3 and all('Cosine' in o for o in told), told
