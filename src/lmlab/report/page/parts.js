// The page once for each protocol: numbers of two never share a table, a figure or a winner.
const ALL = JSON.parse($("data").textContent);
const pages = ALL.parts.map((_, nth) => {
  const first = document.querySelector("main");
  return nth ? first.cloneNode(true) : first;
});
pages.slice(1).forEach((page) => document.body.insertBefore(page, $("tip")));
$("title").textContent = document.title = `${ALL.title}: ${ALL.runs.length} runs`;
$("apart").textContent = ALL.apart;
