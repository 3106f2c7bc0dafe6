// Before anything is painted: the theme that the reader chose the last time, where the browser keeps it.
(function () {
  "use strict";
  try {
    const chosen = window.localStorage.getItem("patchbay-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch (error) {
    // Storage is off: the system's theme stands.
  }
})();
