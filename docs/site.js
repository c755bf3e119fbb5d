// Tables that are wider than the page are scrolled by keyboard too. The theme wraps them when the page is parsed, so this
// waits until everything is loaded.
function reachTables() {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (wrap.scrollWidth > wrap.clientWidth) {
      wrap.tabIndex = 0
      wrap.setAttribute("role", "group")
      wrap.setAttribute("aria-label", "Table, wider than the page")
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) wrap.removeAttribute(name)
    }
  }
}

addEventListener("load", reachTables)
addEventListener("resize", reachTables)
