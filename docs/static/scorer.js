// How pages of the search are ranked: Sphinx reads this object. Answers, experiments and how-tos come before the names of
// the library.
var Scorer = {
  // [name of the page, title, anchor, description, score, file, kind]
  score: ([page, , , , score, , kind]) => {
    if (page === "answers" || page === "why") return score + 40;
    if (page.startsWith("experiments/") || page.startsWith("papers/")) return score + 30;
    if (page.startsWith("howto/") || page === "literature") return score + 20;
    if (page === "changelog" || page === "contributing") return score - 20;
    return kind === "object" ? score - 10 : score;
  },

  // Sphinx's own numbers.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
