// Cases for OpenAI's official SDK against a running cluster: node sdk_cases.mjs CASE BASE_URL MODEL
// prints "ok", or throws.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [name, baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 30000 });
const ask = (content) => ({ model, temperature: 0, messages: [{ role: "user", content }] });

const cases = {
  async models() {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert(ids.includes(model));
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async chat() {
    const r = await client.chat.completions.create(ask("What is 26 + 2?"));
    assert.equal(r.choices[0].message.role, "assistant");
    assert.equal(r.choices[0].message.content.trim(), "26 + 2 = 28");
    assert.equal(r.choices[0].finish_reason, "stop");
    assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
  },
  async stream() {
    const stream = await client.chat.completions.create({
      ...ask("What is 26 + 2?"), stream: true, stream_options: { include_usage: true },
    });
    let text = "", thinking = "", finish = null, usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      thinking += chunk.choices[0]?.delta?.reasoning_content ?? "";
      finish ??= chunk.choices[0]?.finish_reason ?? null;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text.trim(), "26 + 2 = 28");
    assert(thinking.includes("write 8, carry 0"));
    assert.equal(finish, "stop");
    assert(usage.completion_tokens > 20);
  },
  async completion() {
    const r = await client.completions.create({ model, prompt: "The ", max_tokens: 8, temperature: 0 });
    assert.equal(r.object, "text_completion");
    assert.equal(typeof r.choices[0].text, "string");
    assert.equal(r.usage.completion_tokens, 8);
  },
  async stop_and_logprobs() {
    const r = await client.chat.completions.create({
      ...ask("What is 26 + 2?"), stop: [" = 28"], logprobs: true, top_logprobs: 3, seed: 5,
    });
    assert.equal(r.choices[0].message.content.trim(), "26 + 2");
    assert.equal(r.choices[0].finish_reason, "stop");
    const first = r.choices[0].logprobs.content[0];
    assert(first.logprob <= 0 && first.top_logprobs.length === 3);
  },
  async abort() {
    const stream = await client.chat.completions.create({ ...ask("What is 483712 + 96125?"), stream: true });
    let n = 0;
    for await (const _ of stream) if (++n === 5) stream.controller.abort();
    const r = await client.chat.completions.create(ask("What is 1 + 5?"));
    assert.equal(r.choices[0].message.content.trim(), "1 + 5 = 6");
  },
  async bad_request() {
    const error = await client.chat.completions.create({ ...ask("x"), temperature: 9 }).catch((e) => e);
    assert(error instanceof OpenAI.BadRequestError, String(error));
    assert.equal(error.type, "invalid_request_error");
    assert.equal(error.param, "temperature");
  },
  async not_found() {
    const error = await client.chat.completions.create({ ...ask("x"), model: "gpt-nonsense" }).catch((e) => e);
    assert(error instanceof OpenAI.NotFoundError, String(error));
  },
};

await cases[name]();
console.log("ok");
