// A table that is wider than the page scrolls inside its wrapper: let the keyboard reach it.
document$.subscribe(() => {
  for (const wrapper of document.querySelectorAll(".md-typeset__scrollwrap")) {
    wrapper.tabIndex = 0;
  }
});
