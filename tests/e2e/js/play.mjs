// Plays a playlist with hls.js in a real headless Chromium and reports what the player saw, as one line of JSON.
//   node play.mjs PAGE_URL PLAYLIST_URL CHROMIUM PROFILE_FOLDER
import { chromium } from "playwright-core";

const [page_url, playlist, executablePath, profile] = process.argv.slice(2);
const args = [
  "--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-gpu",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
  "--no-proxy-server",
];
const context = await chromium.launchPersistentContext(profile, { executablePath, headless: true, args });
try {
  const page = await context.newPage();
  const console_errors = [];
  page.on("console", (message) => message.type() === "error" && console_errors.push(message.text()));
  page.on("pageerror", (error) => console_errors.push(String(error)));
  await page.goto(page_url);
  const seen = await page.evaluate((url) => window.play(url), playlist);
  console.log(JSON.stringify({ ...seen, console_errors }));
} finally {
  await context.close();
}
