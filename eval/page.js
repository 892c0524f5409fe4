// Makes a pile of pictures one picture with a slider. Without this the newest one is shown.
"use strict";
for (const box of document.querySelectorAll("[data-slider]")) {
  const frames = [...box.querySelectorAll("img[data-label]")];
  const control = box.querySelector(".control");
  const range = control.querySelector("input");
  const told = control.querySelector("output");
  const [back, on] = control.querySelectorAll("button");

  function show(index) {
    const at = Math.max(0, Math.min(frames.length - 1, index));
    frames.forEach((frame, i) => { frame.hidden = i !== at; });
    range.value = at;
    range.setAttribute("aria-valuetext", frames[at].dataset.label);
    told.textContent = frames[at].dataset.label;
    back.disabled = at === 0;
    on.disabled = at === frames.length - 1;
  }

  range.addEventListener("input", () => show(Number(range.value)));
  back.addEventListener("click", () => show(Number(range.value) - 1));
  on.addEventListener("click", () => show(Number(range.value) + 1));
  // arrow keys turn the pages from everywhere but from what needs them itself
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const plain = !(event.altKey || event.ctrlKey || event.metaKey || event.shiftKey);
    if (step && plain && !event.target.closest("input, .wide, pre")) {
      show(Number(range.value) + step);
    }
  });
  control.hidden = false;
  show(frames.length - 1);
}
