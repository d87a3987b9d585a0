"use strict";
(() => {
  const all = (selector, node = document) => [...node.querySelectorAll(selector)];
  const groups = JSON.parse(document.getElementById("groups").textContent);
  const detail = document.querySelector(".detail");
  const hint = detail && detail.textContent.trim();
  let picked = null;

  // Selecting a group shows its sentences, and lets all others fade.
  function pick(group) {
    picked = group === picked ? null : group;
    document.body.classList.toggle("picks", picked !== null);
    for (const node of all("[data-group]")) {
      node.classList.toggle("is-picked", node.dataset.group === picked);
    }
    for (const node of all("[data-pick]")) {
      node.setAttribute("aria-pressed", String(node.dataset.pick === picked));
    }
    const known = picked === null ? null : groups[Number(picked)];
    const sentences = known ? [known.name[0].toUpperCase() + known.name.slice(1) + ".", ...known.details] : [hint];
    if (detail) {
      detail.replaceChildren(...sentences.map((text) => {
        const paragraph = document.createElement("p");
        paragraph.textContent = text;
        return paragraph;
      }));
    }
  }
  for (const node of all("[data-pick]")) {
    node.addEventListener("click", () => pick(node.dataset.pick));
  }
  for (const node of all(".selector")) node.hidden = false;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked !== null) pick(picked);
  });

  // A chart: what is nearest to the pointer is named beside it. Arrow keys go from mark to mark.
  for (const figure of all(".chart")) {
    const svg = figure.querySelector("svg");
    const tip = figure.querySelector(".tip");
    const labels = JSON.parse(figure.dataset.labels);
    const numbers = (text) => text.split(" ").map(Number);
    const value = ([low, high, log, start, end], place) => {
      const share = (place - start) / (end - start);
      return log ? low * (high / low) ** share : low + share * (high - low);
    };
    const show = (number) => String(Number(number.toPrecision(3)));
    const axes = [numbers(figure.dataset.x), numbers(figure.dataset.y)];
    const lines = all(".line[d]", svg).map((node) => ({
      node, points: node.getAttribute("d").split(/[ML]/).slice(1).map(numbers),
    }));
    const place = (node) => node.tagName === "circle"
      ? [node.cx.baseVal.value, node.cy.baseVal.value]
      : numbers(node.getAttribute("transform").slice(10, -1));
    const marks = all(".mark", svg).map((node) => ({ node, points: [place(node)] }));
    let near = null;

    function name(item, [x, y]) {
      if (near) near.classList.remove("is-near");
      near = item.node;
      near.classList.add("is-near");
      const isMark = near.classList.contains("mark");
      const where = `${labels[0]} ${show(value(axes[0], x))}: ${show(value(axes[1], y))}`;
      tip.textContent = isMark ? near.dataset.label : `${near.dataset.label}. ${where}`;
      tip.hidden = false;
      const box = svg.getBoundingClientRect();
      const frame = figure.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const left = box.left - frame.left + x * scale;
      const top = box.top - frame.top + y * scale;
      tip.style.left = Math.max(4, Math.min(left - tip.offsetWidth / 2, frame.width - tip.offsetWidth - 4)) + "px";
      tip.style.top = Math.max(0, top - tip.offsetHeight - 14) + "px";
    }
    function hide() {
      if (near) near.classList.remove("is-near");
      near = null;
      tip.hidden = true;
    }
    function nearest(items, limit, distance) {
      let best = null;
      for (const item of items) {
        if (picked !== null && item.node.dataset.group && item.node.dataset.group !== picked) continue;
        for (const point of item.points) {
          const d = distance(point);
          if (d < limit) [limit, best] = [d, [item, point]];
        }
      }
      return best;
    }
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      const far = ([a, b]) => Math.hypot(a - x, b - y);
      const hit = nearest(marks, 14, far) || nearest(lines, 40, far);
      if (hit) name(...hit); else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("click", (event) => {
      const isLine = near && near.classList.contains("line") && near.dataset.group;
      if (isLine && !event.target.closest("[data-pick]")) pick(near.dataset.group);
    });
    const stops = marks.filter(({ node }) => node.hasAttribute("tabindex"));
    if (stops.length) stops[0].node.setAttribute("tabindex", "0");
    stops.forEach((item, index) => {
      item.node.addEventListener("focus", () => name(item, item.points[0]));
      item.node.addEventListener("blur", hide);
      item.node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const next = step && stops[index + step];
        if (next) {
          item.node.setAttribute("tabindex", "-1");
          next.node.setAttribute("tabindex", "0");
          next.node.focus();
        }
        if ((event.key === "Enter" || event.key === " ") && item.node.dataset.pick) pick(item.node.dataset.pick);
        if (next || event.key === " ") event.preventDefault();
      });
    });
  }

  // A table is sorted by the column whose title is pressed; what has no value comes last.
  for (const table of all("table")) {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.setAttribute("aria-sort", other === head ? order : "none");
      const key = (row) => row.cells[column].dataset.key;
      const isNumber = head.classList.contains("number");
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [p, q] = [key(a), key(b)];
        if (p === "" || q === "") return (p === "") - (q === "");
        return sign * (isNumber ? Number(p) - Number(q) : p.localeCompare(q, "en"));
      });
      body.append(...rows);
    }));
  }

  // Light or dark: the page follows the system until it is told otherwise.
  const button = document.getElementById("theme");
  const isDark = () => (document.documentElement.dataset.theme
    || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  button.hidden = false;
  label();
})();
