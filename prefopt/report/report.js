"use strict";
(() => {
  const each = (selector, act, root) => (root || document).querySelectorAll(selector).forEach(act);

  // A table by one of its columns: numbers by value, largest first; text by the alphabet; empty cells last.
  const number = (cell) => (cell.dataset.v === "" || cell.dataset.v === undefined ? null : Number(cell.dataset.v));
  const value = (head, cell) => {
    if (head.classList.contains("n") && !Number.isNaN(Number(cell.dataset.v))) return number(cell);
    const text = cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  each("table.sortable", (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("n");
        const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !numeric;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(head, row.cells[column]), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return up ? compare(a, b) : compare(b, a);
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  });

  // The leaderboard's rows by what its columns hold: words, or a bound such as > 60 on a number as it is shown.
  const fits = (wanted, head, cell) => {
    const bound = wanted.match(/^(<=|>=|<|>|=)\s*(-?[\d.]+)$/);
    if (!bound) return cell.textContent.toLowerCase().includes(wanted.toLowerCase());
    const shown = parseFloat(cell.textContent.replace("−", "-"));
    const limit = Number(bound[2]);
    if (Number.isNaN(shown)) return false;
    return { "<": shown < limit, ">": shown > limit, "<=": shown <= limit, ">=": shown >= limit, "=": shown === limit }[bound[1]];
  };
  each("#leaderboard table", (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const line = table.tHead.insertRow();
    line.className = "sieve";
    line.hidden = true;
    const apply = () => {
      for (const row of table.tBodies[0].rows) {
        row.hidden = heads.some((head, i) => {
          const input = line.cells[i].querySelector("input");
          return input && input.value.trim() && !fits(input.value.trim(), head, row.cells[i]);
        });
      }
    };
    heads.forEach((head) => {
      const cell = line.insertCell();
      if (!head.querySelector("button")) return;
      const input = document.createElement("input");
      input.setAttribute("aria-label", `filter by ${head.textContent.trim()}`);
      input.placeholder = head.classList.contains("n") ? "> 0" : "words";
      input.addEventListener("input", apply);
      cell.append(input);
    });
    const button = document.createElement("button");
    button.type = "button";
    button.id = "filter";
    button.textContent = "Filter by column";
    button.addEventListener("click", () => {
      line.hidden = !line.hidden;
      line.querySelectorAll("input").forEach((input) => (input.value = ""));
      apply();
    });
    table.caption.firstElementChild.append(" ", button);
  });

  // A figure's own address is its file; on paper everything that is folded is open.
  each("a.save", (link) => {
    link.href = link.closest("figure").querySelector("img").src;
    link.hidden = false;
  });
  addEventListener("beforeprint", () => each("details:not([open])", (one) => (one.open = true)));

  // Samples: search, filters, and ten prompts at a time.
  const prompts = [...document.querySelectorAll(".prompt")];
  if (prompts.length) {
    const PAGE = 10;
    const [find, who, what, count, more] = ["find", "who", "what", "count", "more"].map((id) =>
      document.getElementById(id),
    );
    let limit = PAGE;
    const update = () => {
      const words = find.value.trim().toLowerCase();
      let found = 0;
      for (const prompt of prompts) {
        const disputedOnly = what.value === "disputed";
        let outcome = what.value === "";
        each(".sample", (card) => {
          const { variant, outcome: result } = card.dataset;
          const mine = variant === "reference" || !who.value || variant === who.value;
          const right = variant === "reference" || !what.value || disputedOnly || result === what.value;
          card.hidden = !(mine && right);
          if (mine && right && variant !== "reference") outcome = true;
        }, prompt);
        const shown = [...prompt.querySelectorAll(".sample:not([hidden]) .text, blockquote, h3")];
        const text = !words || shown.some((part) => part.textContent.toLowerCase().includes(words));
        const match = outcome && text && (!disputedOnly || "disputed" in prompt.dataset);
        found += match ? 1 : 0;
        prompt.hidden = !match || found > limit;
      }
      const visible = Math.min(found, limit);
      count.textContent = `${visible} of ${found} matching prompts shown`;
      more.hidden = found <= limit;
    };
    for (const control of [find, who, what]) {
      control.addEventListener("input", () => {
        limit = PAGE;
        update();
      });
    }
    more.addEventListener("click", () => {
      limit += PAGE;
      update();
    });
    update();
  }

  // Copy the methods; without a clipboard, select them.
  const copy = document.getElementById("copy");
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    const source = document.getElementById("paste");
    const text = [...source.querySelectorAll("p")].map((part) => part.textContent).join("\n\n");
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
    }
  });
})();
