// What the stock client of PostgREST gets from an edge: node client.mjs URL DIRECTORY, the directory being the one
// that has its node_modules. Every check that fails ends it; the last line says how many there were.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'

const [base, directory] = process.argv.slice(2)
const { PostgrestClient } = createRequire(directory + '/')('@supabase/postgrest-js')
const db = new PostgrestClient(base)
const dns = db.schema('dns')
let checks = 0

async function same(query, want, more = {}) {
  const { data, error, count, status } = await query
  assert.equal(error, null, JSON.stringify(error))
  assert.deepEqual(data, want)
  for (const [name, value] of Object.entries(more)) assert.equal({ count, status }[name], value, name)
  checks++
}

async function fails(query, want) {
  const { data, error, status } = await query
  assert.equal(data, null)
  for (const [name, value] of Object.entries(want)) assert.equal({ ...error, status }[name], value, name)
  checks++
}

const row = (id) => ({ id, balance: id + 0.5, at: '2024-01-02T03:04:05+00:00', note: null })
const accounts = () => db.from('accounts')
const ids = (...list) => list.map((id) => ({ id }))

await same(accounts().select().eq('id', 5), [row(5)], { status: 200 })
await same(accounts().select('*').eq('id', 5).single(), row(5))
await same(accounts().select('*').eq('id', 99).maybeSingle(), null)
await same(accounts().select('id').in('id', [3, 1, 99]), ids(1, 3))
await same(accounts().select('id').gt('id', 22), ids(23, 24, 25))
await same(accounts().select('id').gte('id', 24), ids(24, 25))
await same(accounts().select('id').lt('id', 3), ids(1, 2))
await same(accounts().select('id').lte('id', 2).neq('id', 1), ids(2))
await same(accounts().select('id').is('note', null).limit(1), ids(1))
await same(accounts().select('id').not('note', 'is', null), [])
await same(accounts().select('id').or('id.eq.1,and(id.gt.3,id.lt.6)'), ids(1, 4, 5))
await same(accounts().select('id').filter('id', 'in', '("7","8")'), ids(7, 8))
await same(accounts().select('id').match({ id: 4, balance: 4.5 }), ids(4))
await same(accounts().select('id').order('id', { ascending: false }).limit(2), ids(25, 24))
await same(accounts().select('id').order('balance', { ascending: false, nullsFirst: false }).limit(2), ids(25, 24))
await same(accounts().select('id').range(2, 4), ids(3, 4, 5))
await same(accounts().select('number:id,"as text":id::text').eq('id', 1), [{ number: 1, 'as text': '1' }])
await same(accounts().select('id', { count: 'exact' }).lt('id', 11).limit(2), ids(1, 2), { count: 10, status: 206 })
await same(accounts().select('*', { count: 'exact', head: true }), null, { count: 25, status: 200 })
await same(accounts().select('id,balance').lte('id', 2).csv(), 'id,balance\n1,1.50\n2,2.50')
await same(accounts().select('id').eq('at', '2024-01-02T03:04:05Z').limit(1), ids(1))

await same(dns.from('records').select('name').eq('zone', 7).like('name', 'ab%'), [{ name: 'ab' }, { name: 'abc' }])
await same(dns.from('records').select('data').match({ zone: 7, name: 'b,c' }).single(), { data: 'data of b,c' })
await same(dns.from('records').select('name').in('name', ['b,c', 'é', '"']).eq('zone', 7), [{ name: 'b,c' }, { name: 'é' }])
await same(dns.from('records').select('zone').eq('live', false), [{ zone: 8 }])

await fails(accounts().select('*').single(), { status: 406, code: 'PGRST116', details: 'The result contains 25 rows' })
await fails(accounts().select('*').eq('id', 'x'), { status: 400, code: '22P02' })
await fails(accounts().select('*, other(*)'), { status: 400, code: 'PGRST200' })
await fails(accounts().select('*').textSearch('note', 'x'), { status: 400, code: 'PGRST127' })
await fails(accounts().select('*').ilike('note', 'x'), { status: 400, code: 'PGRST127' })
await fails(db.from('nothing').select(), { status: 404, code: 'PGRST205' })
await fails(db.schema('none').from('accounts').select(), { status: 406, code: 'PGRST106' })
await fails(accounts().insert({ id: 1 }), { status: 405, code: 'PGRST117' })
await fails(accounts().delete().eq('id', 1), { status: 405, code: 'PGRST117' })
await fails(db.rpc('f'), { status: 404, code: 'PGRST125' })

console.log(`${checks} checks`)
