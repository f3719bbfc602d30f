// The first screen: links to its evidence, and commands that are copied.
(() => {
  // A link to where the address is already changes nothing in it; what it leads to may have been folded since.
  addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    if (link && link.hash === location.hash) dispatchEvent(new HashChangeEvent("hashchange"));
  });

  const status = document.getElementById("copy-status");
  const select = (element) => getSelection().selectAllChildren(element);
  for (const button of page.all("[data-copy]")) {
    const line = document.getElementById(button.dataset.copy);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(line.textContent);
        button.textContent = "Copied";
        status.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; status.textContent = ""; }, 2000);
      } catch { // no permission: the reader copies what is selected
        select(line);
        status.textContent = "Selected: copy it with the keyboard";
      }
    });
  }
})();
