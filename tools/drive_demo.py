"""Drive the demo in headless Chromium: python tools/drive_demo.py SCREENSHOT.png [MODEL.safetensors [PRESET]]   (needs the extra `demo`, selenium, chromium, chromium-driver)
Embeds the gallery of the rendered world PRESET (tiny) with MODEL, or with an untrained network; opens the page, drops a picture, drags the car over it with the mouse, drags a slider,
and checks each time that ranking, response and cosine change. `tests/test_demo.py` does the same for the gate."""
import json, os, sys, tempfile, time
from pathlib import Path
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
import torch
from safetensors.torch import save_file

FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --window-size=1280,1080'.split()

def untrained(path, fns):
    "A student with random weights in the file `path`; its batch norms have seen the pictures `fns`, or every cosine would be near 1"
    from pgflkd.deploy import Embedder, Student, fingerprint
    torch.manual_seed(0)
    card = dict(arch='resnet18', stride=8, same_padding=False, size=[64,32], stats=[[.485,.456,.406],[.229,.224,.225]], dim=512)
    net, read = Student(card), Embedder(None, card).pixels
    for m in net.modules():
        if hasattr(m, 'running_mean'): m.momentum = None          # the mean of all that it sees
    with torch.no_grad(): net.train()(torch.stack([read(o) for o in fns])); net.eval()
    save_file({k: v.contiguous() for k,v in net.state_dict().items()}, path, metadata={'pgflkd': json.dumps(dict(card, weights=fingerprint(net.state_dict())))})
    return path

class Browser:
    "A headless Chromium at `url` that looks at the demo as a person would"
    def __init__(self, url):
        from selenium import webdriver
        opt = webdriver.ChromeOptions(); opt.binary_location = '/usr/bin/chromium'
        for o in (*FLAGS, f'--user-data-dir={tempfile.mkdtemp()}'): opt.add_argument(o)
        self.d = webdriver.Chrome(options=opt, service=webdriver.ChromeService('/usr/bin/chromedriver'))
        self.d.get(url)
    def all(self, css): return self.d.find_elements('css selector', css)
    def until(self, f, what, seconds=90):
        end = time.time()+seconds
        while time.time()<end:
            try:
                if got := f(): return got
            except Exception as e: last = e
            time.sleep(.2)
        raise AssertionError(f'{what}: not within {seconds} s; the page says: {self.all("body")[0].text[:800]}')
    def says(self): return self.all('#says')[0].text
    def state(self): return [self.says(), *(self.all(f'#{o} img')[-1].get_attribute('src') for o in ('strip','loud','see'))]
    def calm(self):
        "The state when it has stopped changing"
        last = None
        while (now := self.until(self.state, 'a whole page'))!=last: last = now; time.sleep(1)
        return now
    def changed(self, before, what):
        self.until(lambda: self.state()[:3]!=before[:3] and all(a!=b for a,b in zip(self.state()[:3], before)), what)
        return self.calm()
    def drag(self, element, dx, dy=0):
        from selenium.webdriver import ActionChains
        ActionChains(self.d).move_to_element(element).click_and_hold().pause(.1).move_by_offset(dx//2, dy//2).move_by_offset(dx-dx//2, dy-dy//2).pause(.1).release().perform()

def drive(shot=None, model=None, preset='tiny', query=1):
    "Open the demo, drop a picture, drag the obstacle, drag a slider; returns what the page said after each"
    from pgflkd.demo import make_app
    from pgflkd.deploy import load_embedder, load_torch
    from pgflkd.gallery import Gallery
    from pgflkd.shelf import embed_pictures
    from pgflkd.synthetic import render_world
    home = Path(tempfile.mkdtemp())
    df = render_world(preset, progress=False)
    model = Path(model or untrained(home/'student.safetensors', df.fn[::5]))
    embed_pictures(df[df.role=='gallery'], load_embedder(model), home/'gallery')
    fn = df[(df.role=='query') & (df.query_set=='holistic')].fn.iloc[query]
    app = make_app(Gallery.open(home/'gallery', model), load_torch(model)[0])
    _, url, _ = app.launch(prevent_thread_lock=True, server_name='127.0.0.1', quiet=True)
    b, told = Browser(url), []
    try:
        b.until(lambda: b.all('input[type=file]'), 'a place to drop a picture')[0].send_keys(str(fn))
        b.until(lambda: 'Cosine' in b.says() and b.all('#strip img') and b.all('#see .thing'), 'an answer to the picture')
        first = b.calm(); told.append(first[0])
        thing, view = b.all('#see .thing')[0], b.all('#see .stage')[0].rect
        was = thing.rect
        b.drag(thing, 0, -round(.3*view['height']))                             # the car, with the mouse, by 30 % of the picture
        second = b.changed(first, 'another answer after the car was dragged'); told.append(second[0])
        up = (was['y']-b.all('#see .thing')[0].rect['y'])/view['height']
        assert abs(up-.3)<.02, f'the car went up by {up:.2f} of the picture, not by .30'
        top = float(b.all('#upper input[type=number]')[0].get_attribute('value'))
        assert abs(top-.25)<.02, f'the slider stands at {top}, not at .25'
        bar = b.all('#width input[type=range]')[0]                              # the slider, with the mouse: from its middle to the left
        b.drag(bar, -round(.3*bar.rect['width']))
        third = b.changed(second, 'another answer after the slider was dragged'); told.append(third[0])
        width = float(b.all('#width input[type=number]')[0].get_attribute('value'))
        assert width<1.2, f'the slider stands at {width}'
        if shot:                                                                # a calm picture of the page: the car again, over the legs
            box = b.all('#width input[type=number]')[0]
            from selenium.webdriver.common.keys import Keys
            box.send_keys(Keys.CONTROL, 'a'); box.send_keys('2.2', Keys.ENTER, Keys.TAB); b.calm()
            b.drag(b.all('#see .thing')[0], 0, round(.2*view['height'])); told.append(b.calm()[0])
            b.d.save_screenshot(str(shot))
    except Exception:
        if shot: b.d.save_screenshot(f'{shot}.failed.png')
        raise
    finally: b.d.quit(); app.close()
    return told

if __name__=='__main__':
    for line in drive(*sys.argv[1:]): print(line)
