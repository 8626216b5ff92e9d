// The learned game on a page. One file of models and the runtime lie beside this script; nothing else is fetched.

const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
const KEYS = { ArrowLeft: "LEFT", ArrowRight: "RIGHT", " ": "FIRE", ArrowUp: "FIRE" };
const FIELD = { top: 16, bottom: 97, left: 4, right: 75, paddle: 95, bright: 55, lone: 51 };  // as in the metrics notebook
const PAGE = `
  <div class="screens">
    <figure class="truth" hidden><canvas></canvas><figcaption>the game</figcaption></figure>
    <figure class="model"><canvas tabindex="0" role="img" aria-label="The learned game: arrow keys steer, space serves"></canvas>
      <button class="big" type="button">▶ Play</button><figcaption>the model</figcaption></figure>
    <figure class="parts" hidden><canvas></canvas><figcaption>only game red, only model blue</figcaption></figure>
  </div>
  <div class="pad">
    <button type="button" data-action="LEFT" aria-label="left">◀</button>
    <button type="button" data-action="FIRE">serve</button>
    <button type="button" data-action="RIGHT" aria-label="right">▶</button>
  </div>
  <p class="says" role="status">Click on Play: the models and what runs them are then loaded once.</p>
  <div class="settings">
    <button type="button" class="pause">Pause (P)</button><button type="button" class="reset">Start over (R)</button>
    <button type="button" class="check">Reality check</button>
  </div>
  <div class="settings">
    <label>Start <select class="start"></select></label>
    <label>Temperature <input class="temperature" type="range" min="0" max="2" step="0.1" value="0"> <output>0</output></label>
    <label>Seed <input class="seed" type="number" min="0" step="1" value="0"></label>
    <label>Speed <input class="rate" type="range" min="5" max="60" step="5" value="15"> <output>15</output></label>
  </div>`;

// A small generator of random numbers in (0, 1), so that a seed decides the game.
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (((mixed ^ (mixed >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
}

async function read(address, what) {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) throw new Error(`${what} could not be loaded: build the site with \`make docs\`, and open it through a web server`);
  return answer;
}

async function unpack(answer) {
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old: it cannot unpack the start frames");
  const bytes = answer.body.pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(bytes).arrayBuffer());
}

// Left edge of the longest bright run in the paddle's rows; -1 if there is none.
function paddle(frame, cols) {
  let best = 0, place = -1, length = 0;
  for (let col = FIELD.left; col <= FIELD.right; col++) {
    const at = FIELD.paddle * cols + col;
    length = frame[at] > FIELD.bright && frame[at + cols] > FIELD.bright ? length + 1 : 0;
    if (length > Math.max(best, 2)) { best = length; place = col - length + 1; }
  }
  return place;
}

// Is there, within two pixels, a spot two rows high that is brighter than what is left and right of it?
function ballNear(frame, cols, row, col) {
  const lone = (r, c) => frame[r * cols + c] - Math.max(c > FIELD.left ? frame[r * cols + c - 1] : 0, c < FIELD.right ? frame[r * cols + c + 1] : 0);
  for (let r = Math.max(FIELD.top, row - 2); r <= Math.min(FIELD.bottom - 1, row + 2); r++)
    for (let c = Math.max(FIELD.left, col - 2); c <= Math.min(FIELD.right, col + 2); c++)
      if (lone(r, c) > FIELD.lone && lone(r + 1, c) > FIELD.lone) return true;
  return false;
}

// Let the page react, without the few milliseconds that a browser adds to repeated timeouts.
function breath() {
  return new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); done(); };
    port2.postMessage(null);
  });
}

class Game {
  constructor(root) {
    this.root = root;
    this.from = new URL(root.dataset.from, document.baseURI);
    root.innerHTML = PAGE;
    this.find = (what) => root.querySelector(what);
    this.canvas = this.find(".model canvas");
    this.held = [];
    this.loops = 0;
    this.turn = 0;  // grows with every start: a step that was under way for an older one is dropped
    this.listen();
    this.describe().catch((error) => this.fail(error));
  }

  // What the game is: sizes, colours, and moments to start from. Small, so it is there before anybody clicks.
  async describe() {
    this.about = await (await read(new URL("game.json", this.from), "the game")).json();
    const { rows, cols, history, steps, moments, colours, levels } = this.about;
    const bytes = await unpack(await read(new URL("moments.bin", this.from), "the start frames"));
    const size = rows * cols, each = (history + steps) * size;
    this.films = moments.map((_, n) => bytes.subarray(n * each, (n + 1) * each));
    this.palette = new Uint32Array(256);
    for (let grey = 0; grey < 256; grey++) {
      const near = levels.reduce((best, level, n) => (Math.abs(level - grey) < Math.abs(levels[best] - grey) ? n : best), 0);
      const [r, g, b] = colours[near];
      this.palette[grey] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    for (const canvas of this.root.querySelectorAll("canvas")) [canvas.width, canvas.height] = [cols, rows];
    this.find(".start").replaceChildren(...moments.map(({ name }, n) => new Option(name, n)));
    this.restart();
  }

  async load() {
    if (!WebAssembly?.validate?.(SIMD)) throw new Error("this browser has no WebAssembly SIMD, which the models need: try a newer one");
    if (!this.about) throw new Error("the start frames have not arrived: reload the page");
    this.say("Loading the models …");
    const model = await (await read(new URL("game.onnx", this.from), "the models")).arrayBuffer();
    this.processor = this.engine = await this.open("wasm", model);
    this.root.dataset.graphics = "trying";
    this.tryGraphics(model).catch(() => "failed").then((found) => (this.root.dataset.graphics = found));
  }

  // The models, ready to run on the processor ("wasm") or the graphics card ("webgpu").
  async open(kind, model) {
    const part = kind === "wasm" ? "wasm" : "all";  // the runtime's newer build for cards, "webgpu", draws other pictures
    const ort = await import(new URL(`ort/ort.${part}.min.mjs`, this.from)).catch(() => {
      throw new Error("the runtime could not be loaded: build the site with `make docs`");
    });
    ort.env.wasm.wasmPaths = new URL("ort/", this.from).href;
    ort.env.wasm.numThreads = 1;  // more would need headers that a static host does not send
    const options = { executionProviders: [kind], graphOptimizationLevel: "all", logSeverityLevel: 3 };  // 3: errors only
    const session = await ort.InferenceSession.create(model, options);
    return { session, Tensor: ort.Tensor };
  }

  // A graphics card takes over if it draws the very same pictures, and sooner. Until that is known the processor plays.
  async tryGraphics(model) {
    if (!(await navigator.gpu?.requestAdapter())) return "none";
    const card = await this.open("webgpu", model), pictures = [], seconds = [];
    const seen = { history: this.history, past: this.past, noise: this.noise.slice(), chance: this.chance.slice() };  // the game goes on meanwhile
    for (const engine of [this.processor, card]) {
      const times = [];
      for (const action of [0, 2, 3, 2]) {
        const start = performance.now(), { frame } = await engine.session.run(this.feeds(engine, action, seen), ["frame"]);
        pictures.push(frame.data);
        times.push(performance.now() - start);
      }
      seconds.push(times.slice(1).sort((a, b) => a - b)[1]);  // the first one warms up
    }
    const half = pictures.length / 2;
    if (pictures.slice(half).some((picture, n) => picture.some((grey, at) => grey !== pictures[n][at]))) return "other pictures";
    if (seconds[1] >= seconds[0]) return "slower";
    this.engine = card;
    return "used";
  }

  restart() {
    const { rows, cols, history, codes, grid, places, moments } = this.about;
    this.moment = Number(this.find(".start").value);
    this.film = this.films[this.moment];
    this.history = this.film.slice(0, history * rows * cols);
    this.past = Int32Array.from(moments[this.moment].past);
    this.random = randomFrom(Number(this.find(".seed").value) || 0);
    this.noise = new Float32Array(codes * grid[0] * grid[1]);
    this.chance = new Float32Array(places);
    this.steps = 0;
    this.turn++;
    this.times = [];
    this.lost = { ball: null, seen: 0, kept: 0, apart: [] };
    this.draw();
  }

  frame() {
    return this.history.subarray(this.history.length - this.about.rows * this.about.cols);
  }

  // What a step is told: pictures, buttons, and noise that lets the temperature choose.
  feeds({ session, Tensor }, action, seen = this) {
    const { rows, cols, history, codes, grid, places } = this.about;
    const all = {
      history: new Tensor("uint8", seen.history, [1, history, rows, cols]),
      action: new Tensor("int32", Int32Array.of(action), [1]),
      past: new Tensor("int32", seen.past, [1, seen.past.length]),
      noise: new Tensor("float32", seen.noise, [1, codes, ...grid]),
      chance: new Tensor("float32", seen.chance, [1, places]),
    };
    return Object.fromEntries(Object.entries(all).filter(([name]) => session.inputNames.includes(name)));
  }

  // One step of play: button and pictures in, next picture out.
  async step(action) {
    const { rows, cols } = this.about, { engine, turn } = this;
    const temperature = Number(this.find(".temperature").value);
    for (const noise of [this.chance, this.noise])
      for (let n = 0; n < noise.length; n++) noise[n] = temperature > 0 ? -temperature * Math.log(-Math.log(this.random())) : 0;
    const ask = (whom) => whom.session.run(this.feeds(whom, action), ["frame"]);
    this.busy = ask(engine).catch((error) => {
      if (engine === this.processor) throw error;
      return ask(this.engine = this.processor);  // a graphics card can get lost: the same step again without it
    });
    const { frame } = await this.busy;
    if (turn !== this.turn) return false;
    const seen = new Uint8Array(this.history.length);
    seen.set(this.history.subarray(rows * cols));
    seen.set(frame.data, seen.length - rows * cols);
    this.history = seen;
    this.past = Int32Array.of(...this.past.subarray(1), action);
    this.steps++;
    return true;
  }

  async run() {
    if (this.playing) return;
    this.playing = true;
    this.find(".big").hidden = true;
    const loop = ++this.loops;  // who pauses and goes on at once must not have two of them
    try {
      await (this.loading ??= this.load());
      await this.busy;  // of a game that was paused and goes on at once
      this.say("");
      if (this.checking && this.steps === this.about.steps) this.restart();
      while (this.playing && loop === this.loops) {
        const start = performance.now();
        if (await this.step(this.button())) {
          this.draw();
          this.report(start);
          if (this.checking && this.steps === this.about.steps) this.finish();
        }
        const left = 1000 / Number(this.find(".rate").value) - (performance.now() - start);
        await (left > 4 ? new Promise((done) => setTimeout(done, left)) : breath());
      }
    } catch (error) { this.fail(error); }
  }

  button() {
    const { actions, moments } = this.about;
    if (this.checking) return moments[this.moment].actions[this.steps];
    return Math.max(actions.indexOf(this.held.at(-1)), 0);
  }

  paint(canvas, colour) {
    const { rows, cols } = this.about, picture = new ImageData(cols, rows), pixels = new Uint32Array(picture.data.buffer);
    for (let n = 0; n < pixels.length; n++) pixels[n] = colour(n);
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  truth() {
    const { rows, cols, history } = this.about, at = (history - 1 + this.steps) * rows * cols;
    return this.film.subarray(at, at + rows * cols);
  }

  draw() {
    const frame = this.frame();
    this.paint(this.canvas, (n) => this.palette[frame[n]]);
    if (!this.checking) return;
    const truth = this.truth();
    this.paint(this.find(".truth canvas"), (n) => this.palette[truth[n]]);
    this.paint(this.find(".parts canvas"), (n) => (truth[n] > frame[n] ? 0xff4848c8 : truth[n] < frame[n] ? 0xffc84842 : 0xff000000));
  }

  report(start) {
    const { cols, actions, steps, moments } = this.about, frame = this.frame();
    this.times = [...this.times.slice(-30), start];
    const rate = this.times.length > 1 ? (1000 * (this.times.length - 1)) / (start - this.times[0]) : 0;
    Object.assign(this.root.dataset, { steps: this.steps, rate: rate.toFixed(1), paddle: paddle(frame, cols) });
    if (!this.checking) {
      const where = this.engine === this.processor ? "" : " on the graphics card";
      if (this.steps % 10 === 0) this.say(`${rate.toFixed(0)} pictures a second${where}, step ${this.steps}`);
      return;
    }
    const truth = this.truth(), ball = moments[this.moment].ball[this.steps], lost = this.lost;
    const differ = truth.reduce((sum, grey, n) => sum + (grey !== frame[n]), 0);
    const [here, there] = [paddle(frame, cols), paddle(truth, cols)];
    if (here >= 0 && there >= 0) lost.apart.push(2 * Math.abs(here - there));
    if (ball && ballNear(truth, cols, ...ball)) {  // counted where the game's own ball stands clear of bricks and paddle
      lost.seen++;
      if (ballNear(frame, cols, ...ball)) lost.kept++;
      else lost.ball ??= this.steps;
    }
    const pressed = actions[moments[this.moment].actions[this.steps - 1]];
    this.say(`Step ${this.steps} of ${steps}, ${pressed}: ${differ} of ${truth.length} pixels differ. ` +
      (here < 0 ? "The model shows no paddle" : there < 0 ? "" : `The paddle is ${2 * Math.abs(here - there)} px off`) +
      (lost.ball ? `; the ball was first missed at step ${lost.ball}.` : "; the ball is where it belongs."));
  }

  finish() {
    const { seen, kept, ball, apart } = this.lost, near = apart.filter((px) => px <= 4).length;
    this.pause(`After ${this.steps} steps under the same buttons: the model's ball was within 4 px of the game's at ${kept} of the ` +
      `${seen} steps at which it could be judged${ball ? `, and first missed at step ${ball}` : ""}; ` +
      `its paddle was within 4 px at ${near} of ${this.steps} steps. Choose another start and see whether this one was lucky.`);
    this.root.dataset.verdict = `${kept} ${seen} ${near}`;
  }

  check(on) {
    this.checking = on;
    for (const part of [".truth", ".parts"]) this.find(part).hidden = !on;
    this.find(".screens").classList.toggle("checking", on);
    this.find(".check").textContent = on ? "Back to playing" : "Reality check";
    delete this.root.dataset.verdict;
    this.restart();
  }

  pause(text = "Paused: click on the picture, or press P, to go on.") {
    if (!this.playing) return;
    this.playing = false;
    this.held = [];
    this.find(".big").hidden = this.checking;
    this.say(text);
  }

  play() {
    this.canvas.focus({ preventScroll: true });
    this.run();
  }

  say(text) {
    this.find(".says").textContent = text;
    this.find(".says").classList.remove("wrong");
  }

  fail(error) {
    this.playing = false;
    this.say(`The game cannot run: ${error.message}.`);
    this.find(".says").classList.add("wrong");
  }

  press(action, down) {
    this.held = this.held.filter((other) => other !== action);
    if (down) this.held.push(action);
    this.find(`[data-action=${action}]`).classList.toggle("held", down);
  }

  listen() {
    const on = (what, event, then) => this.find(what).addEventListener(event, then);
    on(".model canvas", "keydown", (event) => {
      const key = event.key.toLowerCase();
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (KEYS[event.key]) this.press(KEYS[event.key], true);
      else if (key === "r") this.restart();
      else if (key === "p") this.playing ? this.pause() : this.play();
      else return;
      event.preventDefault();
      event.stopPropagation();  // the page has keys of its own
    });
    on(".model canvas", "keyup", (event) => KEYS[event.key] && this.press(KEYS[event.key], false));
    on(".model canvas", "blur", (event) => {
      if (!this.checking && !this.root.contains(event.relatedTarget)) this.pause();
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.pause());
    for (const what of [".model canvas", ".big"]) on(what, "click", () => this.about && this.play());
    for (const button of this.root.querySelectorAll("[data-action]")) {
      const hold = (down) => (event) => { event.preventDefault(); this.press(button.dataset.action, down); if (down && this.about) this.play(); };
      button.addEventListener("pointerdown", hold(true));
      for (const end of ["pointerup", "pointercancel", "pointerleave"]) button.addEventListener(end, hold(false));
    }
    const whole = (then) => () => this.about && then();
    on(".pause", "click", whole(() => (this.playing ? this.pause() : this.play())));
    on(".reset", "click", whole(() => { this.restart(); this.play(); }));
    on(".check", "click", whole(() => { this.check(!this.checking); this.play(); }));
    for (const what of [".start", ".seed"]) on(what, "change", whole(() => { this.restart(); if (this.checking) this.play(); }));
    for (const what of [".temperature", ".rate"])
      on(what, "input", (event) => { event.target.nextElementSibling.textContent = event.target.value; });
  }
}

for (const root of document.querySelectorAll(".lapa-game")) root.game = new Game(root);
