"""Drive the demo in headless Chromium: python .ci/drive_demo.py SCREENSHOT.png   (needs the extra `demo`, selenium, chromium, chromium-driver)
Renders the tiny world, embeds its gallery with an untrained network or with MODEL, opens the page, drops a picture, pushes a slider, and checks that ranking and response change."""
import os, sys, tempfile, time, json
from pathlib import Path
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
import torch
from PIL import Image
from safetensors.torch import save_file
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from pgflkd.demo import make_app
from pgflkd.deploy import Student, fingerprint, load_embedder, load_torch
from pgflkd.gallery import Gallery
from pgflkd.shelf import embed_pictures
from pgflkd.synthetic import render_world

def drive(shot, model=None):
    home = Path(tempfile.mkdtemp())
    df = render_world('tiny', progress=False)
    if model is None:
        torch.manual_seed(0)
        card = dict(arch='resnet18', stride=8, same_padding=False, size=[64,32], stats=[[.485,.456,.406],[.229,.224,.225]], dim=512)
        net, model = Student(card), home/'student.safetensors'
        save_file({k: v.contiguous() for k,v in net.state_dict().items()}, model, metadata={'pgflkd': json.dumps(dict(card, weights=fingerprint(net.state_dict())))})
    embed_pictures(df[df.role=='gallery'], load_embedder(model), home/'gallery')
    query = df[(df.role=='query') & (df.query_set=='holistic')].fn.iloc[1]
    app = make_app(Gallery.open(home/'gallery', model), load_torch(Path(model))[0])
    _, url, _ = app.launch(prevent_thread_lock=True, server_name='127.0.0.1', quiet=True)
    opt = webdriver.ChromeOptions()
    opt.binary_location = '/usr/bin/chromium'
    for o in ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
              f'--user-data-dir={tempfile.mkdtemp()}', '--window-size=1200,1000'): opt.add_argument(o)
    d = webdriver.Chrome(options=opt, service=webdriver.ChromeService('/usr/bin/chromedriver'))
    try:
        wait = WebDriverWait(d, 120)
        d.get(url)
        wait.until(lambda d: d.find_elements(By.CSS_SELECTOR, 'input[type=file]'))
        d.find_element(By.CSS_SELECTOR, 'input[type=file]').send_keys(str(query))
        says = lambda: d.find_element(By.ID, 'says').text
        picture = lambda: (d.find_elements(By.CSS_SELECTOR, '#strip img') or [None])[0]
        state = lambda: (picture().get_attribute('src'), says(), [e.get_attribute('src') for e in d.find_elements(By.TAG_NAME, 'img')])
        wait.until(lambda d: 'Cosine' in says() and picture())
        time.sleep(2); before = state()
        box = d.find_element(By.CSS_SELECTOR, '#top input[type=number]')
        box.send_keys(Keys.CONTROL, 'a'); box.send_keys('0.1', Keys.ENTER, Keys.TAB)
        wait.until(lambda d: says()!=before[1])
        time.sleep(3); after = state()
        print('before', before[1]); print('after ', after[1])
        assert before[0]!=after[0], 'the ranking did not change'
        assert before[2]!=after[2], 'the pictures did not change'
        d.save_screenshot(str(shot))
    except Exception:
        d.save_screenshot(str(shot)+'.failed.png'); print(d.page_source[:0], d.find_element(By.TAG_NAME, 'body').text[:1500]); raise
    finally: d.quit(); app.close()

if __name__=='__main__': drive(sys.argv[1], *sys.argv[2:])
