// The reader's choice of light or dark, kept where the browser allows it; without one, the system's.
(() => {
  const root = document.documentElement;
  const kept = () => { try { return localStorage.getItem("fovea-theme"); } catch { return null; } };
  if (kept()) root.dataset.theme = kept();
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const show = () => { button.textContent = dark() ? "Light" : "Dark"; };
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("fovea-theme", root.dataset.theme); } catch { /* file:// may refuse */ }
      show();
      dispatchEvent(new CustomEvent("themechange", { detail: root.dataset.theme }));
    });
    show();
  });
})();
