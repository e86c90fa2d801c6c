// The dashboard as a person sees it: headless Chromium against a real cloud with two real devices.
// Screenshots go to target/screenshots. The last line is `N passed, N failed`.

import { spawn } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const top = join(here, "../..");
const shots = join(top, "target/screenshots");
mkdirSync(shots, { recursive: true });
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

// ---- the scene: see tests/e2e/src/bin/scene.rs
const scene = spawn(join(top, "target/debug/scene"), { stdio: ["pipe", "pipe", "inherit"] });
const lines = createInterface({ input: scene.stdout })[Symbol.asyncIterator]();
const answer = async () => {
  const { value, done } = await lines.next();
  if (done) throw new Error("the scene ended early");
  return JSON.parse(value);
};
const tell = async (word) => {
  scene.stdin.write(`${word}\n`);
  return answer();
};

let passed = 0;
const failures = [];
async function test(name, body) {
  try {
    await body();
    passed += 1;
    console.log(`ok    ${name}`);
  } catch (error) {
    failures.push(name);
    console.log(`FAIL  ${name}\n      ${String(error.stack ?? error).split("\n").slice(0, 6).join("\n      ")}`);
  }
}
const expect = (truth, message) => {
  if (!truth) throw new Error(message);
};

let browser;
try {
  const set = await answer();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
  });
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 } });
  context.setDefaultTimeout(15_000);
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  const go = (path) => page.goto(set.url + path, { waitUntil: "domcontentloaded" });
  const shot = (name) => page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
  const live = (text, seconds = 60) => page.getByText(text).first().waitFor({ timeout: seconds * 1000 });
  const serious = async () => {
    // Injected from outside the page: its own policy allows no foreign script.
    const results = await page.evaluate(`${axe}; axe.run()`);
    return results.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.nodes[0].html}`);
  };

  await test("who is not signed in is shown the way, and a wrong password is refused", async () => {
    await go("/");
    expect(new URL(page.url()).pathname === "/sign-in", page.url());
    await page.fill("input[name=email]", set.email);
    await page.fill("input[name=password]", "not the password");
    await page.click("main button");
    await live(/password is wrong/i, 10);
    await shot("sign-in-refused");
    expect((await serious()).length === 0, (await serious()).join("; "));
  });

  await test("signing in leads to the overview with its figures", async () => {
    await go("/sign-in");
    await page.fill("input[name=email]", set.email);
    await page.fill("input[name=password]", set.password);
    await page.click("main button");
    await page.waitForURL(set.url + "/");
    await page.waitForSelector("#fleets tr");
    const figures = (await page.locator("#figures").innerText()).replace(/\s+/g, " ");
    expect(/2 devices/.test(figures) && /2 online/.test(figures) && /2 on target/.test(figures), figures);
    await shot("overview");
  });

  const pages = {
    overview: "/",
    fleet: `/fleets/${set.fleet}`,
    devices: `/fleets/${set.fleet}/devices`,
    device: `/devices/${set.device}`,
    releases: `/fleets/${set.fleet}/releases`,
    release: `/releases/${set.release}`,
    systems: `/fleets/${set.fleet}/systems`,
  };
  for (const [name, path] of Object.entries(pages)) {
    await test(`the ${name} page reads well, in light and dark, with and without scripts, and is small`, async () => {
      for (const scheme of ["light", "dark"]) {
        await page.emulateMedia({ colorScheme: scheme });
        await go(path);
        await page.waitForTimeout(300);
        await shot(`${name}-${scheme}`);
        const found = await serious();
        expect(found.length === 0, `${scheme}: ${found.join("; ")}`);
      }
      await page.emulateMedia({ colorScheme: "light" });
      await page.setViewportSize({ width: 390, height: 800 });
      await go(path);
      const width = await page.evaluate(() => document.documentElement.scrollWidth);
      expect(width <= 390, `on a phone the page is ${width} px wide`);
      await shot(`${name}-phone`);
      await page.setViewportSize({ width: 1200, height: 900 });

      const plain = await browser.newContext({ javaScriptEnabled: false, storageState: await context.storageState() });
      const quiet = await plain.newPage();
      const response = await quiet.goto(set.url + path);
      expect(response.status() === 200, `${response.status()}`);
      expect((await response.body()).length < 100_000, "the page is larger than 100 KB");
      expect((await quiet.locator("main").innerText()).length > 40, "nothing to read without scripts");
      await plain.close();
    });
  }

  await test("the build's log can be read", async () => {
    await go(`/fleets/${set.fleet}`);
    await page.click("#builds td a");
    await page.waitForSelector("#build-log");
    expect(/Step|step|FROM/.test(await page.locator("#build-log").innerText()), "the log shows no build step");
    await shot("build");
  });

  await test("a good release shows on the device's page without reload", async () => {
    await go(`/devices/${set.device}`);
    await page.evaluate(() => { window.untouched = true; });
    const { release } = await tell("good");
    await page.waitForSelector(`#services a[href="/releases/${release}"]`, { timeout: 60_000 });
    expect(await page.evaluate(() => window.untouched === true), "the page was reloaded");
  });

  await test("operating systems and agents show what was withdrawn and why, and where one runs without reload", async () => {
    await go(`/fleets/${set.fleet}/systems`);
    await page.evaluate(() => { window.untouched = true; });
    const [good, bad] = set.systems.map((id) => page.locator(`#system-${id}`));
    const withdrawn = await bad.innerText();
    expect(/9\.1\.0/.test(withdrawn) && /withdrawn/.test(withdrawn) && withdrawn.includes("<b>starts</b> nowhere"), withdrawn);
    expect(!/target/.test(await good.innerText()), await good.innerText());
    await tell("system");
    await page.waitForFunction((id) => {
      const cells = [...document.querySelectorAll(`#system-${id} td`)].map((cell) => cell.innerText.trim());
      return cells[3] === "the fleet's target" && cells[5] === "2" && cells[6] === "2";
    }, set.systems[0], { timeout: 60_000 });
    expect(await page.evaluate(() => window.untouched === true), "the page was reloaded");
    await shot("systems-deployed");
    const found = await serious();
    expect(found.length === 0, found.join("; "));
  });

  await test("a broken release shows its reason, exit code and last lines, and hostile log lines are inert", async () => {
    await go(`/devices/${set.device}`);
    await page.evaluate(() => { window.untouched = true; });
    await tell("broken");
    await live(/rolled_back/);
    expect(await page.evaluate(() => window.untouched === true), "the page was reloaded");
    const main = await page.locator("main").innerText();
    expect(/burning/.test(main), "the last lines are missing");
    expect(/\b7\b/.test(main), "the exit code is missing");
    expect(main.includes("<img src=x"), "the line is shown as text");
    expect(!main.includes("\u001b"), "escape characters are on the page");
    expect((await page.locator("main img").count()) === 0, "a log line became an element");
    await shot("device-rolled-back");
    const found = await serious();
    expect(found.length === 0, found.join("; "));
    await go("/");
    const figures = (await page.locator("#figures").innerText()).replace(/\s+/g, " ");
    expect(/2 failed/.test(figures), figures);
    await shot("overview-failed");
  });

  await test("a device with a hostile name is text, or refused", async () => {
    const { device, status } = await tell("hostile");
    expect(status < 500, `${status}`);
    for (const path of [`/fleets/${set.fleet}/devices`, `/devices/${device}`]) {
      await go(path);
      await page.waitForTimeout(200);
      expect(/Copal$/.test(await page.title()), `the title is ${await page.title()}`);
    }
    await shot("device-hostile-name");
  });

  await test("every page's policy forbids inline and foreign script", async () => {
    const response = await go("/");
    const policy = response.headers()["content-security-policy"] ?? "";
    expect(policy.includes("default-src 'none'") && !policy.includes("unsafe"), policy);
  });

  await test("the keyboard leads to the devices and the systems", async () => {
    await go(`/fleets/${set.fleet}`);
    await page.keyboard.press("g");
    await page.keyboard.press("d");
    await page.waitForURL(/\/devices$/);
    await page.keyboard.press("g");
    await page.keyboard.press("s");
    await page.waitForURL(/\/systems$/);
  });

  await test("a foreign id is not found, with a page that says so", async () => {
    const response = await go("/devices/00000000000000000000000000000000");
    expect(response.status() === 404, `${response.status()}`);
    complaints.length = 0;
  });

  await test("signing out ends the session", async () => {
    await go("/");
    await page.click("text=Sign out");
    await page.waitForURL(/sign-in/);
    await go("/");
    expect(new URL(page.url()).pathname === "/sign-in", page.url());
  });

  await test("no page made the browser complain", async () => {
    const real = complaints.filter((c) => !/401|403|404/.test(c));
    expect(real.length === 0, real.join("\n"));
  });
} catch (error) {
  failures.push("the scene");
  console.log(`FAIL  ${error.stack ?? error}`);
} finally {
  await browser?.close();
  scene.stdin.end();
  await new Promise((resolve) => { scene.on("exit", resolve); setTimeout(() => { scene.kill(); resolve(); }, 20_000); });
}
for (const name of failures) console.log(`failed: ${name}`);
console.log(`${passed} passed, ${failures.length} failed`);
process.exit(failures.length === 0 ? 0 : 1);
