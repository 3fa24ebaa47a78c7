"use strict";
// The page's behaviour: sums live bytes, thins what a chart shows to its pixels, fills tables. No network, no globals
// but `farrier`, through which the charts' callbacks arrive.
(() => {
  const COLUMNS = 1400;
  const $ = (id) => document.getElementById(id);
  const number = (n) => Math.round(n).toLocaleString("en");
  const size = (n) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let k = 0, v = Math.abs(n);
    while (v >= 1024 && k < 4) { v /= 1024; k++; }
    return (n < 0 ? "-" : "") + (k ? Number(v.toPrecision(3)) : v) + " " + units[k];
  };
  const time = (ns) => ns >= 1e9 ? (ns / 1e9).toPrecision(3) + " s" : ns >= 1e6 ? (ns / 1e6).toPrecision(3) + " ms"
    : (ns / 1e3).toPrecision(3) + " us";
  const shorter = (source) => source.split("/").slice(-2).join("/");
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const clamp = (v, a, b) => Math.min(Math.max(v, a), b);
  const frame = (draw) => {
    let waiting = false;
    return () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    };
  };

  async function unpack() {
    const raw = Uint8Array.from(atob($("farrier-data").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  const figure = (name) => {
    for (const document of Bokeh.documents) {
      const found = document.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  };
  const drawn = (chart, name) => chart.renderers.find((r) => r.data_source?.name === name) ?? null;
  const part = (chart, name) => drawn(chart, name)?.data_source ?? null;
  const layout = (chart, name) => chart.center.find((m) => m.name === name);

  // --- a table that sorts, filters and shows the first rows -------------------------------------------------------
  const text = (cell) => Array.isArray(cell) ? cell[1] : String(cell);
  const key = (cell) => Array.isArray(cell) ? cell[0] : cell;

  class Table {
    constructor(where, columns, { limit = 100, label = "" } = {}) {
      this.rows = []; this.limit = this.step = limit; this.needle = ""; this.by = null; this.down = true;
      this.columns = columns;
      this.body = element("tbody");
      this.heads = columns.map((name, k) => {
        const button = element("button", { type: "button", textContent: name });
        button.addEventListener("click", () => this.sort(k));
        const head = element("th", { scope: "col" }, button);
        return head;
      });
      const table = element("table", {}, element("thead", {}, element("tr", {}, ...this.heads)), this.body);
      table.setAttribute("aria-label", label);
      this.note = element("p", { className: "more" });
      const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
      scroll.setAttribute("role", "region");
      scroll.setAttribute("aria-label", label);
      where.append(scroll, this.note);
    }
    set(rows) { this.rows = rows; this.limit = this.step; this.draw(); }
    filter(needle) { this.needle = needle.toLowerCase(); this.limit = this.step; this.draw(); }
    sort(column) {
      this.down = this.by === column ? !this.down : true;
      this.by = column;
      this.draw();
    }
    draw() {
      let rows = this.rows;
      // Every word must stand somewhere in the row.
      for (const word of this.needle.split(/\s+/).filter(Boolean))
        rows = rows.filter((r) => r.some((c) => text(c).toLowerCase().includes(word)));
      if (this.by !== null) {
        const k = this.by, sign = this.down ? -1 : 1;
        rows = [...rows].sort((a, b) => {
          const x = key(a[k]), y = key(b[k]);
          return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
        });
      }
      const first = rows[0] ?? [];
      this.heads.forEach((head, k) => {
        head.className = typeof key(first[k]) === "number" ? "number" : "";
        head.setAttribute("aria-sort", this.by !== k ? "none" : this.down ? "descending" : "ascending");
        head.firstChild.textContent = this.columns[k] + (this.by !== k ? "" : this.down ? " \u25be" : " \u25b4");
      });
      this.body.replaceChildren(...rows.slice(0, this.limit).map((row) => element("tr", {}, ...row.map((cell) => {
        const made = element("td", { textContent: text(cell) });
        if (typeof key(cell) === "number") made.className = "number";
        else if (made.textContent.length > 60) made.className = "long";
        if (Array.isArray(cell) && cell.length > 2) {
          const bar = element("span", { className: "bar" });
          bar.style.width = `${100 * clamp(cell[2], 0, 1)}%`;
          made.append(bar);
        }
        return made;
      }))));
      const shown = Math.min(rows.length, this.limit);
      this.note.replaceChildren(`${number(shown)} of ${number(rows.length)} rows`
        + (rows.length < this.rows.length ? ` (filtered from ${number(this.rows.length)})` : ""));
      if (shown < rows.length) {
        const more = element("button", { type: "button", textContent: "show more" });
        more.addEventListener("click", () => { this.limit *= 5; this.draw(); });
        this.note.append(" ", more);
      }
    }
  }

  // --- zooming by keyboard, the same for both charts ---------------------------------------------------------------
  function zoomable(box, chart, full, moves) {
    const show = (a, b) => {
      const width = clamp(b - a, full.least, full.to - full.from);
      a = clamp(a, full.from, full.to - width);
      chart.x_range.setv({ start: a, end: a + width });
    };
    box.addEventListener("keydown", (event) => {
      const { start, end } = chart.x_range, width = end - start, middle = moves.middle?.() ?? (start + end) / 2;
      const act = {
        "+": () => show(middle - width / 4, middle + width / 4), "=": () => show(middle - width / 4, middle + width / 4),
        "-": () => show(middle - width, middle + width), "0": () => show(full.from, full.to),
        ...moves.keys?.(show, start, end),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
    return show;
  }

  // --- memory --------------------------------------------------------------------------------------------------------
  class Memory {
    constructor(data) {
      this.data = data;
      this.chart = figure("memory");
      this.scale = data.memory.unit[1];
      this.n = data.names.length;
      const b = data.memory.buffers, kinds = data.origins.length;
      this.series = data.origins.map(() => new Float64Array(this.n + 1));
      this.host = new Float64Array(this.n + 1);
      for (let k = 0; k < b.bytes.length; k++) {
        const series = b.host[k] ? this.host : this.series[b.origin[k]];
        series[b.start[k]] += b.bytes[k];
        series[b.end[k] + 1] -= b.bytes[k];
      }
      this.total = new Float64Array(this.n);
      for (const s of [...this.series, this.host]) for (let k = 1; k <= this.n; k++) s[k] += s[k - 1];
      for (let k = 0; k < this.n; k++) for (const s of this.series) this.total[k] += s[k];
      this.shown = new Array(kinds).fill(true);
      this.at = data.memory.peak.position;
      this.draw = frame(() => this.paint());
      this.legend();
      this.table = new Table($("live-table"), ["bytes", "share", "shape", "origin", "name", "layer", "scope", "source", "live from", "to", "notes"],
        { label: "Live buffers" });
      this.groups = new Table($("live-table"), ["bytes", "share", "group", "buffers"], { label: "Live bytes by group" });
      $("live-group").addEventListener("change", () => this.list());
      $("live-filter").addEventListener("input", () => this.list());
      $("live-peak").addEventListener("click", () => this.move(this.data.memory.peak.position));
      const full = { from: 0, to: Math.max(1, this.n), least: Math.min(4, this.n) };
      this.full = full;
      this.show = zoomable($("memory-chart"), this.chart, full, {
        middle: () => this.at,
        keys: (show, start, end) => ({
          ArrowLeft: () => this.move(this.at - Math.max(1, Math.round((end - start) / 200)), true),
          ArrowRight: () => this.move(this.at + Math.max(1, Math.round((end - start) / 200)), true),
          p: () => this.move(data.memory.peak.position, true), P: () => this.move(data.memory.peak.position, true),
        }),
      });
      this.overlays();
      const top = Math.max(data.memory.allocated, this.budgetFits ? data.memory.budget : 0, this.beforeTop ?? 0) / this.scale;
      this.chart.y_range.setv({ start: 0, end: top * 1.08 || 1 });
      this.chart.x_range.setv({ bounds: [0, full.to] });
      this.show(0, full.to);
      this.move(this.at);
    }

    legend() {
      const totals = this.series.map((s) => Math.max(...[s[this.at]], s.reduce((a, v) => Math.max(a, v), 0)));
      this.data.origins.forEach(([name, colour], k) => {
        if (!totals[k]) return;
        const box = element("input", { type: "checkbox", checked: true, id: `origin-${name}` });
        box.addEventListener("change", () => { this.shown[k] = box.checked; this.draw(); this.list(); });
        const swatch = element("span", { className: "swatch" });
        swatch.style.background = colour;
        $("legend").append(element("label", {}, box, swatch, name));
      });
      const line = (label, style, colour) => {
        const dash = element("span", { className: "dash" });
        dash.style.borderTopStyle = style;
        dash.style.borderTopColor = colour;
        $("legend").append(element("span", {}, dash, label));
      };
      line(`allocated (${size(this.data.memory.allocated)})`, "dotted", "#666666");
      // A budget far above everything would flatten the chart: it is only named then.
      const { budget, allocated } = this.data.memory;
      this.budgetFits = budget && budget <= 1.6 * allocated;
      if (budget) line(`budget (${size(budget)}${this.budgetFits ? "" : ", above the chart"})`, "solid", "#B00020");
      const { before, estimate, peak } = this.data.memory;
      const toggled = (name, label, style, colour, on = true) => {
        const box = element("input", { type: "checkbox", checked: on, id: `line-${name.replace(" ", "-")}` });
        const show = () => { drawn(this.chart, name).visible = box.checked; };
        box.addEventListener("change", show);
        const dash = element("span", { className: "dash" });
        dash.style.borderTopStyle = style;
        dash.style.borderTopColor = colour;
        $("legend").append(element("label", {}, box, dash, label));
        show();
      };
      if (before) toggled("before", "before", "dashed", "#000000");
      const described = (e) => `${e.label}: temporaries on the arguments and results that XLA allocates`
        + (e.divided_by > 1 ? `, sizes of the whole program / ${e.divided_by}` : "") + `; aligned at ${e.anchors} operations`;
      if (estimate) toggled("estimate", described(estimate), "solid", "#6A3D9A");
      if (before?.estimate) toggled("estimate before", "its estimate before", "dotted", "#6A3D9A", false);
      if (peak.host_bytes) toggled("host", "host memory", "dashed", "#009E73");
    }

    overlays() {
      // Two programs have different lengths: the other one is stretched to this one's width.
      const put = (name, points) => {
        part(this.chart, name).data = { x: points.map((p) => p[0]), y: points.map((p) => p[1] / this.scale) };
        return points.reduce((a, p) => Math.max(a, p[1]), 0);
      };
      const { before, estimate, peak } = this.data.memory;
      if (before) {
        const scale = this.n / Math.max(1, before.positions), points = before.timeline.map(([x, y]) => [x * scale, y]);
        if (points.length) points.push([this.n, points[points.length - 1][1]]);
        this.beforeTop = put("before", thin(points, COLUMNS));
      }
      // A step of the estimate lasts to the end, as the compiled curve does.
      const guess = (name, e, scale) => {
        const points = e.points.map(([x, y]) => [x * scale, y]);
        if (points.length) points.push([this.n, points[points.length - 1][1]]);
        this.beforeTop = Math.max(this.beforeTop ?? 0, put(name, thin(points, 4 * COLUMNS)));
      };
      if (estimate) guess("estimate", estimate, 1);
      if (before?.estimate) guess("estimate before", before.estimate, this.n / Math.max(1, before.positions));
      if (peak.host_bytes) put("host", thin(Array.from(this.host.subarray(0, this.n), (y, x) => [x, y]), COLUMNS));
      part(this.chart, "peak").data = { x: [peak.position + 0.5], y: [peak.bytes / this.scale] };
    }

    paint() {
      const { start, end } = this.chart.x_range;
      const from = clamp(Math.floor(start), 0, this.n - 1), to = clamp(Math.ceil(end), from + 1, this.n);
      const width = Math.max(1, (to - from) / COLUMNS), xs = [], picks = [];
      for (let x = from; x < to; x += width) {
        // The largest position of each column stands for it, so that no peak is lost.
        let best = Math.floor(x);
        for (let k = best; k < Math.min(to, Math.floor(x + width)); k++) if (this.total[k] > this.total[best]) best = k;
        xs.push(Math.floor(x));
        picks.push(best);
      }
      xs.push(to);
      const stepped = (values) => {
        const out = new Float64Array(2 * values.length);
        for (let k = 0; k < values.length; k++) out[2 * k] = out[2 * k + 1] = values[k];
        return out;
      };
      const count = picks.length, x = new Float64Array(2 * count);
      for (let k = 0; k < count; k++) { x[2 * k] = xs[k]; x[2 * k + 1] = xs[k + 1]; }
      const data = { x, y0: new Float64Array(2 * count) };
      let below = new Float64Array(count);
      this.series.forEach((s, k) => {
        if (this.shown[k]) below = below.map((v, j) => v + s[picks[j]] / this.scale);
        data[`y${k + 1}`] = stepped(below);
      });
      part(this.chart, "stacked").data = data;
    }

    move(position, follow = false) {
      this.at = clamp(Math.round(position), 0, this.n - 1);
      layout(this.chart, "cursor").location = this.at + 0.5;
      const { start, end } = this.chart.x_range;
      if (follow && (this.at < start || this.at >= end)) this.show(this.at - (end - start) / 2, this.at + (end - start) / 2);
      this.read(this.at);
      this.list();
    }

    read(at) {
      const parts = this.data.origins.map(([name], k) => [this.series[k][at], name]).filter((p) => p[0]).sort((a, b) => b[0] - a[0]);
      const source = this.data.strings[this.data.sources[at]];
      const loop = this.data.loops.filter((l) => l.first <= at && at <= l.last).map((l) => ` in a loop of ${l.known ? l.trips : "unknown"} iterations`).join("");
      $("memory-readout").textContent = `${number(at)}: ${this.data.names[at]}${source ? ` [${shorter(source)}]` : ""}${loop}`
        + ` \u2014 ${size(this.total[at])} live (${number(this.total[at])} bytes): ` + parts.map(([v, name]) => `${name} ${size(v)}`).join(", ")
        + this.guessed(at);
    }

    guessed(at) {
      const points = this.data.memory.estimate?.points ?? [];
      let low = 0, high = points.length;
      while (low < high) { const k = (low + high) >> 1; if (points[k][0] <= at) low = k + 1; else high = k; }
      return low ? `; estimated ${size(points[low - 1][1])}` : "";
    }

    list() {
      const b = this.data.memory.buffers, s = this.data.strings, at = this.at, live = [];
      for (let k = 0; k < b.bytes.length; k++)
        if (b.start[k] <= at && at <= b.end[k] && !b.host[k] && this.shown[b.origin[k]]) live.push(k);
      live.sort((x, y) => b.bytes[y] - b.bytes[x]);
      const peak = this.data.memory.peak.position;
      $("live-title").textContent = at === peak ? `Live at the peak (instruction ${number(peak)})` : `Live at instruction ${number(at)}`;
      const total = this.total[at] || 1, share = (v) => [v / total, `${(100 * v / total).toFixed(1)} %`, v / total];
      const group = $("live-group").value;
      const [on, off] = group ? [this.groups, this.table] : [this.table, this.groups];
      on.needle = $("live-filter").value.toLowerCase();
      for (const [table, display] of [[on, ""], [off, "none"]]) {
        table.note.style.display = display;
        table.note.previousSibling.style.display = display;
      }
      if (group) {
        const sums = new Map();
        for (const k of live) {
          const name = (group === "origin" ? this.data.origins[b.origin[k]][0] : s[b[group][k]]) || "(none)";
          const found = sums.get(name) ?? [0, 0];
          sums.set(name, [found[0] + b.bytes[k], found[1] + 1]);
        }
        on.set([...sums].sort((x, y) => y[1][0] - x[1][0]).map(([name, [v, c]]) => [[v, size(v)], share(v), name, c]));
      } else {
        on.set(live.map((k) => [[b.bytes[k], size(b.bytes[k])], share(b.bytes[k]), s[b.shape[k]], this.data.origins[b.origin[k]][0],
          s[b.name[k]], s[b.layer[k]], s[b.scope[k]], shorter(s[b.source[k]]), b.start[k], b.end[k], s[b.notes[k]]]));
      }
    }

    on(event, at) {
      if (event === "range") this.draw();
      else if (event === "mousemove" && at.x >= 0 && at.x < this.n) this.read(Math.floor(at.x));
      else if (event === "tap") this.move(Math.floor(at.x));
      else if (event === "reset") this.show(0, this.full.to);
    }
  }

  // Keeps the largest point of each of `columns` equal stretches, and the first.
  function thin(points, columns) {
    if (points.length <= columns) return points;
    const out = [points[0]], step = points.length / columns;
    for (let k = 0; k < columns; k++) {
      let best = points[Math.floor(k * step)];
      for (let j = Math.floor(k * step); j < Math.floor((k + 1) * step); j++) if (points[j][1] > best[1]) best = points[j];
      out.push(best);
    }
    return out;
  }

  // --- schedule --------------------------------------------------------------------------------------------------------
  const MS = 1e6;
  class Schedule {
    constructor(data, memory) {
      this.data = data; this.memory = memory; this.s = data.schedule; this.c = this.s.columns;
      this.chart = figure("schedule");
      this.rows = this.s.tracks.length;
      this.byTrack = this.s.tracks.map(() => []);
      this.c.track.forEach((t, k) => this.byTrack[t].push(k));
      for (const list of this.byTrack) list.sort((a, b) => this.c.start[a] - this.c.start[b] || this.c.duration[b] - this.c.duration[a]);
      this.tracks = Object.fromEntries(this.s.tracks.map((name, k) => [name, k]));
      this.waits = new Map(this.byTrack[this.tracks.wait].map((k) => [this.c.done[k], k]));
      this.draw = frame(() => this.paint());
      const full = { from: 0, to: Math.max(this.s.step / MS, 1e-6), least: Math.min(1e-4, this.s.step / MS) };
      this.full = full;
      this.show = zoomable($("schedule-chart"), this.chart, full, {
        keys: (show, start, end) => ({
          ArrowLeft: () => show(start - (end - start) / 8, end - (end - start) / 8),
          ArrowRight: () => show(start + (end - start) / 8, end + (end - start) / 8),
        }),
      });
      $("expand").addEventListener("change", () => this.draw());
      this.legend();
      this.chart.x_range.setv({ bounds: [0, full.to] });
      this.show(0, full.to);
    }

    legend() {
      const used = new Map();
      this.c.kind.forEach((k, j) => used.set(k, (used.get(k) ?? 0) + this.c.duration[j]));
      const colours = new Map();
      for (const [k] of [...used].sort((a, b) => b[1] - a[1])) {
        const colour = this.s.colours[k], names = colours.get(colour) ?? [];
        names.push(this.s.kinds[k]);
        colours.set(colour, names);
      }
      for (const [colour, names] of colours) {
        const swatch = element("span", { className: "swatch" });
        swatch.style.background = colour;
        $("kinds").append(element("span", {}, swatch, names.slice(0, 3).join(", ") + (names.length > 3 ? ", ..." : "")));
      }
    }

    folded() {
      // With loops folded, what runs inside an iteration is hidden behind its block.
      if ($("expand").checked) return () => false;
      const blocks = this.byTrack[this.tracks.loop].filter((k) => this.s.kinds[this.c.kind[k]] === "iteration");
      return (k) => blocks.some((b) => this.c.start[b] <= this.c.start[k] && this.c.start[k] < this.c.start[b] + this.c.duration[b]);
    }

    paint() {
      const { start, end } = this.chart.x_range, pixel = (end - start) / COLUMNS, hidden = this.folded();
      const out = { left: [], right: [], bottom: [], top: [], colour: [], hatch: [] };
      const pairs = { x0: [], y0: [], x1: [], y1: [] };
      this.hits = [];
      this.byTrack.forEach((list, track) => {
        const row = this.rows - 1 - track;
        let block = null;
        const add = (left, right, kind, k) => {
          out.left.push(left); out.right.push(right); out.bottom.push(row + 0.12); out.top.push(row + 0.88);
          out.colour.push(kind === null ? "#6B7280" : this.s.colours[kind]);
          out.hatch.push(kind !== null && this.s.kinds[kind] === "wait" ? "/" : kind === null ? "." : " ");
          this.hits.push([row, left, right, k]);
        };
        const flush = () => { if (block) add(block.left, block.right, block.mixed ? null : block.kind, block.k); block = null; };
        for (const k of list) {
          const left = this.c.start[k] / MS, right = left + this.c.duration[k] / MS;
          if (right < start || left > end || (track !== this.tracks.loop && hidden(k))) continue;
          if (right - left >= pixel) { flush(); add(left, right, this.c.kind[k], k); }
          else if (block && left - block.right < pixel) {
            // Slices narrower than a pixel become one block; zooming in takes it apart.
            block.right = Math.max(block.right, right);
            block.mixed ||= block.kind !== this.c.kind[k];
          } else { flush(); block = { left, right, kind: this.c.kind[k], mixed: false, k }; }
        }
        flush();
      });
      const waitRow = this.rows - 1 - this.tracks.wait, from = this.rows - 1 - this.tracks.communication;
      for (const k of this.byTrack[this.tracks.communication]) {
        const wait = this.waits.get(this.c.done[k]), until = (this.c.start[k] + this.c.duration[k]) / MS;
        if (wait === undefined || until < start || until > end || hidden(k) || pairs.x0.length > 400) continue;
        pairs.x0.push(until); pairs.y0.push(from + 0.88); pairs.x1.push(until); pairs.y1.push(waitRow + 0.12);
      }
      part(this.chart, "slices").data = out;
      part(this.chart, "pairs").data = pairs;
    }

    find(at) {
      const row = Math.floor(at.y);
      return this.hits?.filter((h) => h[0] === row && h[1] <= at.x && at.x <= h[2]).pop()?.[3];
    }

    on(event, at) {
      if (event === "range") this.draw();
      else if (event === "reset") this.show(0, this.full.to);
      else if (event === "mousemove") {
        layout(this.chart, "clock").location = at.x;
        const k = this.find(at);
        if (k !== undefined) this.read(k);
      } else if (event === "tap") {
        const k = this.find(at);
        if (k === undefined) return;
        this.read(k);
        this.memory.move(this.c.position[k], true);
        if (this.c.track[k] === this.tracks.loop) {
          const left = this.c.start[k] / MS, right = left + this.c.duration[k] / MS;
          this.show(left, right);
        }
      }
    }

    read(k) {
      const c = this.c, source = this.data.strings[c.source[k]], name = this.data.names[c.position[k]];
      const pair = c.done[k] >= 0 && c.done[k] !== c.position[k] ? `; starts at instruction ${number(c.position[k])}, done at ${number(c.done[k])} (${this.data.names[c.done[k]]})` : "";
      const exposed = c.exposed[k] ? `; the device waits ${time(c.exposed[k])} for it` : "";
      $("schedule-readout").textContent = `${name} (${this.s.kinds[c.kind[k]]})${source ? ` [${shorter(source)}]` : ""} \u2014 `
        + `${time(c.duration[k])} from ${time(c.start[k])}${pair}${exposed}`;
    }
  }

  // --- the other tables ------------------------------------------------------------------------------------------------
  const TITLES = {
    changes: ["Changes", "What differs from the report before, largest first within its kind."],
    kernels: ["Kernels", "Equal kernels of one source line together; sums over one step on one device. Ideal: every input read once, every result written once. Of roofline: the data sheet's limit over the predicted time."],
    opportunities: ["Opportunities", "Values that one kernel writes and others read back, by the bytes that another program would not move: an upper bound."],
    collectives: ["Collectives", "Start and done are instruction numbers; exposed is what the device waits for in one execution."],
    arguments: ["Arguments", "A donated argument's memory holds a result, so it is not allocated twice."],
    remarks: ["Remarks", "What the passes decided, and why not where they did not."],
    measured: ["Measured", "Times of a real run beside the predicted ones."],
    allocator: ["Allocator", "What the device's allocator reported after the run: all of the process, other programs and fragmentation included."],
  };
  function tables(data) {
    for (const name of Object.keys(TITLES)) {
      const content = data.tables[name];
      if (!content) continue;
      const [title, note] = TITLES[name];
      const filter = element("input", { type: "search", placeholder: "words, any column", id: `${name}-filter` });
      const section = element("section", { id: `${name}-section` }, element("h2", { textContent: title }),
        element("p", { className: "subtle", textContent: note }),
        element("div", { className: "controls" }, element("label", {}, "Filter ", filter)));
      $("tables").append(section);
      const table = new Table(section, content.columns, { label: title });
      filter.addEventListener("input", () => table.filter(filter.value));
      table.set(content.rows);
    }
    for (const section of document.querySelectorAll("main section"))
      $("sections").append(element("a", { href: `#${section.id}`, textContent: section.querySelector("h2").textContent }));
  }

  async function start() {
    performance.mark("farrier: script");
    const data = await unpack();
    performance.mark("farrier: data");
    await ready();
    performance.mark("farrier: charts");
    const memory = new Memory(data);
    const schedule = data.schedule ? new Schedule(data, memory) : null;
    const charts = { memory, schedule };
    window.farrier = { on: (name, event, at) => charts[name]?.on(event, at), charts, data };
    tables(data);
    charts.memory.draw();
    charts.schedule?.draw();
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  }

  // Bokeh builds its models after the page has loaded.
  function ready() {
    return new Promise((resolve) => {
      const look = () => (figure("memory") && (!$("schedule-chart") || figure("schedule")) ? resolve() : setTimeout(look, 10));
      look();
    });
  }
  start();
})();
