"""Drive the demo in headless Chromium: python tools/drive_demo.py SCREENSHOT.png [MODEL.safetensors [PRESET]]

Needs gradio, selenium, chromium and chromium-driver. Embeds the gallery of the rendered world PRESET (tiny) with MODEL,
or with an untrained network; opens the page, drops a picture, drags the car over it with the mouse, drags a slider, and
checks each time that ranking, response and cosine change. `tests/test_demo.py` does the same."""
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT  = Path(__file__).resolve().parent.parent
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--window-size=1280,1080']


def untrained(path, fns):
    "A student with random weights in `path`, whose batch norms have seen `fns`, or every cosine would be near 1"
    from pgflkd.baseline import Baseline, reid_body
    from pgflkd.deploy import export, load_embedder
    torch.manual_seed(0)
    net = Baseline(reid_body('resnet18', None, stride=8), 1)
    embed = load_embedder(export(net, path, size=(64, 32)))
    for layer in net.modules():
        if hasattr(layer, 'running_mean'): layer.momentum = None          # the mean of all that it sees
    mean, std = torch.tensor(embed.card['stats'])[:, None, :, None, None]
    x = torch.stack([torch.from_numpy(embed.pixels(o)) for o in fns])
    with torch.no_grad(): net.train()((x-mean)/std)
    return export(net, path, size=(64, 32))


class Browser:
    "A headless Chromium at `url` that looks at the demo as a person would"
    def __init__(self, url):
        from selenium import webdriver
        options = webdriver.ChromeOptions()
        options.binary_location = '/usr/bin/chromium'
        for flag in (*FLAGS, f'--user-data-dir={tempfile.mkdtemp()}'): options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService('/usr/bin/chromedriver'))
        self.driver.get(url)
    def all(self, css): return self.driver.find_elements('css selector', css)
    def until(self, f, what, seconds=90):
        end = time.time()+seconds
        while time.time()<end:
            try:
                if got := f(): return got
            except Exception: pass                        # a part of the page is being replaced
            time.sleep(.2)
        raise AssertionError(f'{what}: not within {seconds} s; the page says: {self.all("body")[0].text[:800]}')
    def says(self): return self.all('#says')[0].text
    def state(self):
        return [self.says(), *(self.all(f'#{o} img')[-1].get_attribute('src') for o in ('strip', 'response', 'see'))]
    def calm(self):
        "The state when it has stopped changing"
        last = None
        while (now := self.until(self.state, 'a whole page'))!=last:
            last = now
            time.sleep(1)
        return now
    def changed(self, before, what):
        "The state when ranking, response and cosine are others than `before`"
        def other(): return all(a!=b for a, b in zip(self.state()[:3], before))
        self.until(other, what)
        return self.calm()
    def drag(self, element, dx, dy=0):
        from selenium.webdriver import ActionChains
        hand = ActionChains(self.driver).move_to_element(element).click_and_hold().pause(.1)
        hand = hand.move_by_offset(dx//2, dy//2).move_by_offset(dx-dx//2, dy-dy//2)
        hand.pause(.1).release().perform()
    def number(self, slider): return float(self.all(f'#{slider} input[type=number]')[0].get_attribute('value'))


def load_demo():
    "The module examples/demo.py"
    spec = importlib.util.spec_from_file_location('demo', ROOT/'examples/demo.py')
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


def drag_slider(page, before):
    "Drag the slider of the width to the left; the state of the page after it"
    bar = page.all('#width input[type=range]')[0]
    page.drag(bar, -round(.3*bar.rect['width']))
    after = page.changed(before, 'another answer after the slider was dragged')
    assert page.number('width')<1.2, f'the slider stands at {page.number("width")}'
    return after


def drag_all(page, fn):
    "Drop the picture `fn`, drag the car, drag a slider; what the page said after each"
    page.until(lambda: page.all('input[type=file]'), 'a place to drop a picture')[0].send_keys(str(fn))
    page.until(lambda: 'Cosine' in page.says() and page.all('#see .thing'), 'an answer to the picture')
    first = page.calm()
    tall, was = page.all('#see .stage')[0].rect['height'], page.all('#see .thing')[0].rect['y']
    page.drag(page.all('#see .thing')[0], 0, -round(.3*tall))             # by 30 % of the picture
    second = page.changed(first, 'another answer after the car was dragged')
    up = (was-page.all('#see .thing')[0].rect['y'])/tall
    assert abs(up-.3)<.02, f'the car went up by {up:.2f} of the picture, not by .30'
    assert abs(page.number('top')-.25)<.02, f'the slider stands at {page.number("top")}, not at .25'
    return [first[0], second[0], drag_slider(page, second)[0]]


def drive(shot=None, model=None, preset='tiny', query=1):
    "Open the demo, drag, and keep a picture of the page in `shot`; returns what the page said"
    from pgflkd.deploy import load_student
    from pgflkd.gallery import Gallery
    from pgflkd.synthetic import render_world
    home = Path(tempfile.mkdtemp())
    df = render_world(preset, progress=False)
    model = Path(model or untrained(home/'student.safetensors', df.fn[::5]))
    gallery = Gallery.create(home/'gallery', model)
    gallery.fill(df[df.role=='gallery'])
    fn  = df[(df.role=='query') & (df.query_set=='holistic')].fn.iloc[query]
    app = load_demo().make_app(gallery, load_student(model))
    _, url, _ = app.launch(prevent_thread_lock=True, server_name='127.0.0.1', quiet=True)
    page = Browser(url)
    try: return drag_all(page, fn)
    finally:
        if shot: page.driver.save_screenshot(str(shot))
        page.driver.quit()
        app.close()


if __name__=='__main__':
    for line in drive(*sys.argv[1:]): print(line)
