// Sorts and filters the tables of the report. Without it the page shows the same, in one order.
"use strict";

// What a cell is sorted by: its value if it names one, the first number in it, or its text; dashes and what is not there come last.
function sortKey(cell) {
  if (cell && cell.dataset.value !== undefined) return [0, parseFloat(cell.dataset.value), ""];
  const text = cell && !cell.querySelector(".absent") ? cell.textContent.trim() : "";
  const plain = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  const number = plain.match(/^<?\s?-?\d+(\.\d+)?/);
  if (number) return [0, parseFloat(number[0].replace("<", "")) - (text.startsWith("<") ? 1e-9 : 0), ""];
  return text === "\u2013" || text === "" ? [2, 0, ""] : [1, 0, text];
}

function compare(one, other) {
  return one[0] - other[0] || one[1] - other[1] || one[2].localeCompare(other[2], undefined, { numeric: true });
}

function sortBy(table, column, button) {
  const header = button.closest("th");
  const direction = header.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [sortKey(row.cells[column]), row]);
  rows.sort((one, other) => {
    const isLast = (one[0][0] === 2) - (other[0][0] === 2);
    return isLast || (direction === "ascending" ? 1 : -1) * compare(one[0], other[0]);
  });
  body.append(...rows.map((pair) => pair[1]));
}

for (const table of document.querySelectorAll("table.sortable")) {
  // Heads of groups have rows above the last, which has a head for each column.
  for (const header of [...table.tHead.rows].at(-1).cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(table, header.cellIndex, button));
  }
}

for (const field of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(field.dataset.filters);
  field.closest("label").hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// Question by question: built when it is opened, of one model at a time.
function fillAnswers(details) {
  const content = JSON.parse(details.querySelector("script").textContent);
  const [models, kinds] = details.querySelectorAll("select");
  const texts = details.querySelector("input");
  const table = details.querySelector("table");
  for (const name of Object.keys(content.models)) models.add(new Option(name, name));
  texts.closest("label").hidden = !content.questions.some((question) => question.text);
  const none = content.attacks.indexOf("no attack");

  function draw() {
    const answers = content.models[models.value];
    const heads = ["fact", "question", ...content.attacks];
    table.tHead.rows[0].replaceChildren(
      ...heads.map((head) => Object.assign(document.createElement("th"), { scope: "col", textContent: head })),
    );
    const rows = [];
    content.questions.forEach((question, place) => {
      const marks = answers.map((digits) => (digits ? digits[place] === "1" : null));
      const isBack = none >= 0 && marks[none] === false && marks.some((mark) => mark === true);
      if (kinds.value === "back" && !isBack) return;
      const row = document.createElement("tr");
      row.insertCell().textContent = question.fact;
      const shown = row.insertCell();
      if (texts.checked && question.text) shown.textContent = question.text;
      else shown.append(Object.assign(document.createElement("code"), { textContent: question.id }));
      for (const mark of marks) row.insertCell().textContent = mark === null ? "\u2013" : mark ? "\u2713" : "\u00b7";
      rows.push(row);
    });
    table.tBodies[0].replaceChildren(...rows);
    details.querySelector("output").textContent = `${rows.length} of ${content.questions.length} questions`;
  }

  for (const control of [models, kinds, texts]) control.addEventListener("change", draw);
  draw();
}

for (const details of document.querySelectorAll("details.answers")) {
  details.hidden = false;
  details.addEventListener("toggle", () => fillAnswers(details), { once: true });
}
