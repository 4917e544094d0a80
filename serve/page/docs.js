// The API's description, drawn from the service's own OpenAPI document.

import { at, fail, fetchJson, make } from "./api.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

/** A schema in a word or two; names of messages are links. */
function kindOf(schema = {}) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1);
    return [make("a", { href: `#${name}`, textContent: name })];
  }
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((choice, place) => (place ? [" or ", ...kindOf(choice)] : kindOf(choice)));
  if (schema.type === "array") return ["list of ", ...kindOf(schema.items)];
  if (schema.enum) return [schema.enum.join(" | ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["maxLength", "at most"], ["maxItems", "at most"]].filter(([name]) => schema[name] !== undefined).map(([name, sign]) => `${sign} ${schema[name]}`);
  return [[schema.format ?? schema.type ?? "anything", ...bounds].join(", ")];
}

function table(heads, rows) {
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col", textContent: text }))));
  return make("div", { class: "scroll", tabIndex: 0 }, make("table", {}, head, make("tbody", {}, ...rows)));
}

function row(name, kind, required, text) {
  return make("tr", {}, make("th", { scope: "row" }, make("code", { textContent: name })), make("td", {}, ...kind), make("td", { textContent: required ? "yes" : "" }), make("td", { textContent: text ?? "" }));
}

function operation(method, path, told) {
  const id = `${method}-${path}`;
  const parts = [make("h3", { id }, make("code", { textContent: `${method.toUpperCase()} ${path}` })), make("p", { textContent: told.description ?? told.summary ?? "" })];
  if (told.security?.length) parts.push(make("p", { class: "soft", textContent: "Needs a key: Authorization: Bearer …" }));
  if (told.parameters?.length) {
    parts.push(table(["parameter", "kind", "required", "meaning"], told.parameters.map((one) => row(one.name, kindOf(one.schema), one.required, one.description ?? one.schema?.description))));
  }
  const body = told.requestBody?.content?.["application/json"]?.schema;
  if (body) parts.push(make("p", {}, "Body: ", ...kindOf(body)));
  const answers = Object.entries(told.responses).map(([status, answer]) => {
    const [[type, content] = ["", {}]] = Object.entries(answer.content ?? {});
    return make("tr", {}, make("th", { scope: "row", textContent: status }), make("td", {}, ...(content.schema ? kindOf(content.schema) : [type])), make("td", { textContent: answer.description ?? "" }));
  });
  parts.push(table(["status", "answer", "in words"], answers));
  return make("article", { class: "operation", "aria-labelledby": id }, ...parts);
}

function message(name, schema) {
  const fields = Object.entries(schema.properties ?? {}).map(([field, told]) => row(field, kindOf(told), schema.required?.includes(field), told.description));
  return make("article", { class: "operation", "aria-labelledby": name }, make("h3", { id: name }, make("code", { textContent: name })), make("p", { textContent: schema.description ?? "" }), fields.length ? table(["field", "kind", "required", "meaning"], fields) : make("p", {}, ...kindOf(schema)));
}

async function show() {
  const told = await fetchJson("openapi.json");
  const found = Object.entries(told.paths).flatMap(([path, operations]) => METHODS.filter((method) => operations[method]).map((method) => [method, path, operations[method]]));
  at("contents").replaceChildren(make("ul", {}, ...found.map(([method, path]) => make("li", {}, make("a", { href: `#${method}-${path}`, textContent: `${method.toUpperCase()} ${path}` })))));
  const groups = Map.groupBy(found, ([, , one]) => one.tags?.[0] ?? "other");
  at("operations").replaceChildren(...[...groups].map(([group, operations]) => make("section", { "aria-label": group }, make("h2", { textContent: group }), ...operations.map((one) => operation(...one)))));
  at("schemas").replaceChildren(...Object.entries(told.components?.schemas ?? {}).map(([name, schema]) => message(name, schema)));
  at("status").textContent = `${found.length} endpoints`;
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

show().catch(fail);
