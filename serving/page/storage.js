// What the browser keeps for the page, in "localStorage" or "sessionStorage"; where both are switched off it only forgets.

export function kept(area, name) {
  try {
    return window[area].getItem(name);
  } catch {
    return null;
  }
}

export function keep(area, name, value) {
  try {
    window[area].setItem(name, value);
  } catch {
    // full, or switched off
  }
}
