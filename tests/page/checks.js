// What a tool for accessibility would look at: returns { texts, faults } from check().
window.check = () => {
  const faults = [];
  const name = node => `${node.tagName.toLowerCase()}${node.id ? '#' + node.id : ''}.${node.getAttribute('class') ?? ''} `
    + `"${node.textContent.trim().slice(0, 40)}"`;
  const all = [...document.body.querySelectorAll('*')].filter(node => node.checkVisibility());

  // Colours as [r, g, b, a]; only opaque and fully transparent ones are used, and no opacity.
  const rgba = text => {
    const numbers = text.match(/[\d.]+/g)?.map(Number) ?? [];
    return numbers.length === 3 ? [...numbers, 1] : numbers;
  };
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (getComputedStyle(at).opacity !== '1') faults.push(`opacity: ${name(at)}`);
      if (colour[3] === 1) return colour;
      if (colour[3] !== 0) faults.push(`half transparent: ${name(at)}`);
    }
    return [255, 255, 255, 1];
  };
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map(v => v / 255).map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const demand = (node, colour, least) => {
    const found = contrast(rgba(colour), ground(node));
    if (!(found >= least)) faults.push(`contrast ${found.toFixed(2)} of ${colour}: ${name(node)}`);
  };

  let texts = 0;
  for (const node of all) {
    const style = getComputedStyle(node);
    const own = [...node.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (own) {
      texts += 1;
      demand(node, node.closest('svg') ? style.fill : style.color, 4.5);
    }
    // Drawings and edges that carry a meaning.
    if (node.matches('.sign, .spark .good, .spark .bad, .spark .mark, .spark .void, .chart .track, .chart .threshold')) {
      demand(node, style.stroke, 3);
    }
    if (node.matches('.dist .before, .dist .since, .dist .middle')) demand(node, style.stroke, 3);
    if (node.matches('.badge, .bar, .toned')) demand(node.parentElement, style.borderLeftColor, 3);
    if (node.matches('input[type=search]')) demand(node.parentElement, style.borderLeftColor, 3);
    // Nothing beyond the right edge, not even where it is cut off.
    const box = node.getBoundingClientRect();
    if (box.right > document.documentElement.clientWidth + 0.5 && !node.closest('.unheard')) faults.push(`too wide (${box.right}): ${name(node)}`);
    // A target for a finger, unless it stands in a line of text.
    if (node.matches('summary, input[type=search]') && box.height < 24) faults.push(`too small: ${name(node)}`);
  }
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) faults.push('the page scrolls sideways');

  // Structure.
  const heads = all.filter(node => node.matches('h1, h2, h3, h4, h5, h6')).map(node => [Number(node.tagName[1]), node]);
  if (heads.filter(([level]) => level === 1).length !== 1) faults.push('not one h1');
  heads.forEach(([level, node], i) => {
    if (i && level > heads[i - 1][0] + 1) faults.push(`a level is left out before ${name(node)}`);
    if (!node.textContent.trim()) faults.push(`empty heading: ${name(node)}`);
  });
  for (const landmark of ['header', 'nav', 'main', 'footer']) {
    if (document.querySelectorAll(landmark).length !== 1) faults.push(`not one ${landmark}`);
  }
  const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
  for (const id of new Set(ids)) if (ids.filter(other => other === id).length > 1) faults.push(`id twice: ${id}`);
  for (const node of all) {
    if (node.matches('svg') && !(node.getAttribute('aria-hidden') === 'true'
      || (node.getAttribute('role') === 'img' && node.getAttribute('aria-label')))) faults.push(`unnamed: ${name(node)}`);
    if (node.matches('table') && !node.caption?.textContent) faults.push(`no caption: ${name(node)}`);
    if (node.matches('th') && !node.scope) faults.push(`no scope: ${name(node)}`);
    if (node.matches('input') && !node.labels.length) faults.push(`no label: ${name(node)}`);
    if (node.matches('a, summary') && !node.textContent.trim()) faults.push(`no name: ${name(node)}`);
    if (node.matches('ul, ol') && [...node.children].some(child => child.tagName !== 'LI')) faults.push(`not a list: ${name(node)}`);
    // Never by colour alone: a badge has a word.
    if (node.matches('.badge') && !node.textContent.trim()) faults.push(`no word: ${name(node)}`);
  }
  // Nothing moves, so nobody has to ask for stillness.
  for (const node of all) {
    const { animationName, transitionDuration } = getComputedStyle(node);
    if (animationName !== 'none' || transitionDuration !== '0s') faults.push(`moves: ${name(node)}`);
  }
  if (!document.documentElement.lang) faults.push('no language');
  return { texts, faults };
};
