"The demo in a real browser: a picture is dropped, the car is dragged over it with the mouse, a slider is dragged; ranking, response and cosine must change each time."
import shutil
import pytest

def test_demo_is_driven():
    pytest.importorskip('gradio', reason='gradio is not installed: pip install -e ".[demo]"')
    pytest.importorskip('selenium', reason='selenium is not installed: pip install selenium')
    lost = [o for o in ('chromium', 'chromedriver') if shutil.which(o) is None]
    if lost: pytest.skip(f'{" and ".join(lost)} not found: apt-get install chromium chromium-driver')
    from drive_demo import drive
    told = drive()
    assert len(set(told))==3 and all('Cosine' in o for o in told), told
