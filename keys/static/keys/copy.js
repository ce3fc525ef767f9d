// Buttons with `data-copies` copy the text of the element of that id.
document.querySelectorAll("[data-copies]").forEach((button) => button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    try {
        await navigator.clipboard.writeText(source.textContent);
    } catch {
        // Browsers have no clipboard for pages that came over plain HTTP from another host.
        getSelection().selectAllChildren(source);
        document.execCommand("copy");
    }
    button.textContent = "Copied";
}));
