// What every page does: the theme, the place in the contents, and everything unfolded on paper.
(function () {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  const now = () => root.dataset.theme || "system";
  const tell = () => { button.textContent = "Theme: " + now(); };
  button.hidden = false;
  tell();
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(now()) + 1) % themes.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      window.localStorage.setItem("patchbay-theme", next);
    } catch (error) {
      // Storage is off: the choice lasts as long as the page.
    }
    tell();
  });

  const contents = document.querySelector(".contents details");
  const narrow = window.matchMedia("(max-width: 900px)");
  const fold = () => { contents.open = !narrow.matches; };
  fold();
  narrow.addEventListener("change", fold);

  const links = new Map();
  for (const link of document.querySelectorAll(".contents a")) links.set(link.hash.slice(1), link);
  const sections = [...document.querySelectorAll("main > section")];
  let current = null;
  const mark = () => {
    let found = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top < 140) found = section;
    const bottom = window.innerHeight + window.scrollY >= root.scrollHeight - 4;
    if (bottom) found = sections[sections.length - 1];
    const link = found && links.get(found.id);
    if (link === current) return;
    if (current) current.removeAttribute("aria-current");
    if (link) link.setAttribute("aria-current", "true");
    current = link;
  };
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    window.requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });
  mark();

  // A link into something folded unfolds it.
  const reveal = () => {
    const name = decodeURIComponent(window.location.hash.slice(1));
    let at = name && !name.includes("=") ? document.getElementById(name) : null;
    for (; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  window.addEventListener("hashchange", reveal);
  reveal();

  // A filter above a list of entries: <input data-filters="id">, entries with data-entry.
  for (const input of document.querySelectorAll("input[data-filters]")) {
    const entries = [...document.getElementById(input.dataset.filters).querySelectorAll("[data-entry]")];
    const texts = entries.map((entry) => entry.textContent.toLowerCase());
    input.hidden = false;
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      entries.forEach((entry, i) => { entry.hidden = !words.every((word) => texts[i].includes(word)); });
      for (const group of document.getElementById(input.dataset.filters).querySelectorAll("details")) {
        const held = group.querySelectorAll("[data-entry]:not([hidden])").length;
        group.hidden = held === 0;
        if (words.length) group.open = held > 0;
      }
    });
  }

  // A button that copies what stands in another element: <button data-copies="id">.
  for (const copier of document.querySelectorAll("button[data-copies]")) {
    copier.hidden = false;
    copier.addEventListener("click", () => {
      const source = document.getElementById(copier.dataset.copies);
      const selection = window.getSelection();
      selection.selectAllChildren(source);
      const copied = document.execCommand("copy");
      selection.removeAllRanges();
      copier.textContent = copied ? "Copied" : "Press Ctrl+C";
      window.setTimeout(() => { copier.textContent = "Copy"; }, 1600);
    });
  }

  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("main details:not([open])")];
    for (const each of folded) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of folded) each.open = false;
    folded = [];
  });
})();
