// Opens a page in a real headless Chromium, calls its `run` with one argument, prints what that gives as JSON.
//   node page.mjs PAGE_URL ARGUMENT CHROMIUM PROFILE_FOLDER
import { chromium } from "playwright-core";

const [page_url, argument, executablePath, profile] = process.argv.slice(2);
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
  const seen = await page.evaluate((given) => window.run(given), argument);
  console.log(JSON.stringify({ ...seen, console_errors }));
} finally {
  await context.close();
}
