"""A page in your browser: drop a picture, push an obstacle over it, and watch the answer and the network's response.

    pip install gradio
    python examples/demo.py GALLERY [PICTURES] [--model STUDENT.safetensors] [--port 7860]

GALLERY is a folder of pgflkd_embed, PICTURES a folder of pictures to click on. Nothing leaves your machine."""
import base64
import io
import os
import re
import socket
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from PIL import Image, ImageDraw, ImageFont

from pgflkd.deploy import load_student
from pgflkd.errors import InputError, extra, guarded, need
from pgflkd.files import list_pictures, open_picture
from pgflkd.gallery import Gallery
from pgflkd.world.scenery import OBSTACLES, draw_obstacles

KINDS = [*OBSTACLES, 'nothing']   # what can be put before somebody
BOX = dict(left=-.6, top=.55, width=2.2, height=.45)
RENDERED = re.compile(r'.*_c\d+_t\d+_\d+')    # how the rendered world names its pictures


def obstacle(kind, size, seed=0):
    "The obstacle `kind` as an RGBA picture of `size` (h,w), the air around it transparent; `seed` decides its paint"
    need(kind in KINDS, f'{kind}: no known obstacle; take one of {", ".join(KINDS)}')
    height, width = max(1, size[0]), max(1, size[1])
    if kind=='nothing' or min(size)<1: return Image.new('RGBA', (width, height))
    drawn = draw_obstacles([kind], (height, width), np.random.default_rng(seed))[0]
    return Image.fromarray((255*drawn).round().byte().permute(1, 2, 0).numpy())


def put_obstacle(picture, kind='car', left=-.6, top=.55, width=2.2, height=.45):
    "A copy of `picture` with an obstacle over it; the box is in shares of the picture, what sticks out is cut off"
    w, h = picture.size
    thing = obstacle(kind, (round(height*h), round(width*w)))
    covered = picture.convert('RGB').copy()
    covered.paste(thing, (round(left*w), round(top*h)), thing)
    return covered


@torch.inference_mode()
def response(student, pixels):
    "The mean (h,w) over the channels of the last map of `student` for `pixels` (3,H,W) in [0,1], largest 1"
    mean, std = torch.tensor(student.card['stats'])[:, None, :, None, None]
    fmap = student.body((torch.from_numpy(pixels)[None]-mean)/std).mean(1)[0]
    return (fmap/fmap.max().clamp_min(1e-9)).clamp_min(0).numpy()


def overlay(picture, weights):
    "`picture`, dark where `weights` (h,w) in [0,1] are low and orange where they are high"
    mask = Image.fromarray((255*weights).astype(np.uint8)).resize(picture.size, Image.BILINEAR)
    mask = np.asarray(mask)[..., None]/255
    lit  = np.asarray(picture.convert('RGB'))*(.35+.35*mask) + np.array([255, 140, 0])*.3*mask
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def strip(pictures, captions, height=200):
    "`pictures` side by side with `captions` below"
    pictures = [o.resize((round(o.width*height/o.height), height)) for o in pictures]
    out  = Image.new('RGB', (sum(o.width+40 for o in pictures), height+36), 'white')
    draw, font, x = ImageDraw.Draw(out), ImageFont.load_default(size=13), 0
    for picture, caption in zip(pictures, captions):
        out.paste(picture, (x+20, 0))
        draw.text((x+6, height+2), caption, fill='black', font=font)
        x += picture.width+40
    return out


def opened_or_grey(fn):
    "The picture in the file `fn`, or a grey one if it is gone"
    try: return open_picture(fn)
    except InputError: return Image.new('RGB', (64, 128), 'silver')


def answer(gallery, student, picture, **box):
    "What the page shows: the covered picture, the response, the strip of answers, the cosine with the free picture"
    covered = put_obstacle(picture, **box)
    found = gallery.search(covered, 6)
    names = [f'{o.score:.2f}\nperson {o.pid}, camera {o.camid}' for o in found.itertuples()]
    free, hidden = gallery.embedder.features([picture, covered])
    seen = overlay(covered, response(student, gallery.embedder.pixels(covered)))
    return covered, seen, strip([opened_or_grey(fn) for fn in found.fn], names), float(free@hidden)


def as_html(picture):
    "`picture` as the address of an <img>"
    data = io.BytesIO()
    picture.save(data, 'PNG')
    return 'data:image/png;base64,'+base64.b64encode(data.getvalue()).decode()


def stage(picture, kind, left, top, width, height, tall=300):
    "HTML: the person and, above it, the obstacle that can be dragged"
    w, h  = picture.size
    box   = dict(left=left, top=top, width=width, height=height)
    place = ''.join(f'{side}:{100*share:.1f}%;' for side, share in box.items())
    thing = as_html(obstacle(kind, (round(height*h), round(width*w))))
    frame = f'position:relative;overflow:hidden;height:{tall}px;width:{round(tall*w/h)}px;touch-action:none'
    return (f'<div class="stage" style="{frame}"><img src="{as_html(picture.convert("RGB"))}" alt="a person" '
            f'draggable="false" style="width:100%;height:100%"><img class="thing" src="{thing}" alt="{kind}" '
            f'draggable="false" style="position:absolute;max-width:none;cursor:grab;{place}"></div>')


DRAG = """
let thing = null, x, y;
element.addEventListener('pointerdown', e => {
  thing = e.target.closest('.thing'); if (!thing) return;
  e.preventDefault(); x = e.clientX - thing.offsetLeft; y = e.clientY - thing.offsetTop;
});
element.addEventListener('pointermove', e => {
  if (thing) { thing.style.left = e.clientX-x+'px'; thing.style.top = e.clientY-y+'px'; }
});
for (const over of ['pointerup', 'pointerleave']) element.addEventListener(over, e => {
  if (!thing) return;
  const s = element.querySelector('.stage');
  trigger('click', {left: thing.offsetLeft/s.clientWidth, top: thing.offsetTop/s.clientHeight}); thing = null;
});
"""


def who_is_shown(gallery):
    "A sentence about the people of `gallery`"
    rendered = all(RENDERED.match(Path(fn).name) for fn in gallery.table.fn)
    if rendered: return 'The people of this gallery are rendered: they do not exist.'
    return f'This gallery holds {len(gallery):,} pictures that were given to it. Treat them as pictures of people.'


def shower(gallery, student):
    "A function of what stands on the page that gives what it shows next"
    def show(picture, kind, *box):
        if picture is None: return None, None, None, 'Drop a picture of one person, or click on an example.'
        box = dict(zip(BOX, box), kind=kind)
        _, seen, nearest, same = answer(gallery, student, picture, **box)
        seen = seen.resize((round(seen.width*300/seen.height), 300))
        says = f'Cosine between the features with and without the obstacle: **{same:.3f}**'
        return stage(picture, **box), seen, nearest, says
    return show


def make_app(gallery, student, examples=()):
    "The Gradio page: the obstacle is dragged over the picture, or pushed by sliders, and every move asks again"
    gr = extra('gradio')
    show = shower(gallery, student)
    def moved(event: gr.EventData):
        return round(min(max(event.left, -2.5), 1), 2), round(min(max(event.top, -1), 1), 2)
    with gr.Blocks(title='pgflkd: put something in front of them', analytics_enabled=False) as app:
        gr.Markdown(f'# Put something in front of them\n{who_is_shown(gallery)}')
        with gr.Row():
            picture = gr.Image(type='pil', label='a person', height=340)
            see  = gr.HTML(js_on_load=DRAG, label='drag it', show_label=True, container=True, elem_id='see')
            seen = gr.Image(label='response (orange: high)', height=340, elem_id='response')
            kind, box = sliders(gr)
        says, nearest = gr.Markdown(elem_id='says'), gr.Image(label='the nearest', height=280, elem_id='strip')
        if examples: gr.Examples(list(examples), [picture])
        ins, outs = [picture, kind, *box], [see, seen, nearest, says]
        for part in ins: part.change(show, ins, outs, trigger_mode='always_last', show_progress='hidden')
        see.click(moved, None, box[:2], show_progress='hidden')
        app.load(show, ins, outs)
    return app


def sliders(gr):
    "What chooses the obstacle, and the four sliders of its box"
    with gr.Column():
        kind, box = gr.Radio(KINDS, value='car', label='obstacle'), []
        for name, low, high in (('left', -2.5, 1), ('top', -1, 1), ('width', 0, 2.5), ('height', 0, 1)):
            box.append(gr.Slider(low, high, BOX[name], step=.01, label=name, elem_id=name))
    return kind, box


def check_free(port):
    "Refuse a port that another program uses"
    with socket.socket() as s: taken = s.connect_ex(('127.0.0.1', port))==0
    need(not taken, f'port {port}: another program uses it; give another with --port')


def open_both(folder, model=''):
    "The gallery in `folder` and its student, both by the file `model`, or the one that the gallery remembers"
    file = model or Gallery.open(folder).facts['network'] or ''
    return Gallery.open(folder, file), load_student(file)


@call_parse
def demo_command(
    gallery: str,       # Folder that pgflkd_embed wrote
    *pictures: str,     # Folders of pictures to click on
    model: str = '',    # The .safetensors that made it; left out: the one that the gallery remembers
    port: int = 7860,   # Of the page
):
    "Open a page where you can hide a person behind an obstacle and search"
    def job():
        os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'      # before Gradio is imported: nothing is counted
        extra('gradio')
        check_free(port)
        opened, student = open_both(gallery, model)
        need(len(opened), f'{gallery}: holds no picture; fill it with pgflkd_embed')
        shown = sum(map(list_pictures, pictures), [])[:8]
        app = make_app(opened, student, shown)
        print(who_is_shown(opened))
        print(f'The page is at http://127.0.0.1:{port}; Ctrl-C ends it', flush=True)
        allowed = [str(Path(o).resolve()) for o in pictures]
        app.launch(server_port=port, server_name='127.0.0.1', allowed_paths=allowed, quiet=True)
    guarded('demo', job)
