"""start_chromium(profile, *words): a Chromium without a window, driven by selenium; the caller quits it."""
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


def start_chromium(profile, *words):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", f"--user-data-dir={profile}", *words):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
