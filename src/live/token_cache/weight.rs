//! How much memory a verified token takes: what its parts allocate, each rounded up as the allocator does.

use std::mem::size_of;
use std::sync::Arc;

use serde_json::{Map, Value};
use smol_str::SmolStr;

use super::Verified;
use super::shared::is_shared;
use crate::request::Identity;

/// The reference counts before what an [`Arc`] holds.
const COUNTS: usize = 2 * size_of::<usize>();

/// An entry's place in the cache, with its share of the free places and of the marks that are left of evicted tokens: what was measured is 3% less.
const PLACE: usize = 128;

/// A node of a B-tree of the standard library has so many places.
const NODE: usize = 11;

/// The bytes that a token takes, with its place in the cache.
pub(super) fn of(verified: &Verified) -> u64 {
    let registered = &verified.registered;
    let own = [
        PLACE,
        allocated(COUNTS + size_of::<Verified>()),
        text(&verified.token),
        verified.typ.as_ref().map_or(0, word_of_many),
        registered.issuer.as_ref().map_or(0, word_of_many),
        list(&registered.audiences),
        registered.confirmation.as_deref().map_or(0, |confirmation| allocated(size_of::<Value>()) + value(confirmation)),
        identity(&verified.identity),
    ];
    own.into_iter().sum::<usize>() as u64
}

/// The name of the authenticator is not among it: all its identities share that.
fn identity(identity: &Identity) -> usize {
    let words = [&identity.subject, &identity.consumer, &identity.client, &identity.key_id, &identity.plan];
    allocated(COUNTS + size_of::<Identity>())
        + words.into_iter().flatten().map(word).sum::<usize>()
        + list(&identity.scopes)
        + list(&identity.roles)
        + members(&identity.claims)
}

/// What another token says as well is charged to that one. When that one goes it is charged to none, but each that stays has it in its own text too.
fn list(list: &Arc<[Arc<str>]>) -> usize {
    if is_shared(list) { 0 } else { allocated(COUNTS + size_of_val(&**list)) + list.iter().map(counted).sum::<usize>() }
}

fn word_of_many(text: &Arc<str>) -> usize {
    if is_shared(text) { 0 } else { counted(text) }
}

fn members(map: &Map<String, Value>) -> usize {
    // A map that has outgrown one node is of nodes that are half full, as their keys come in order or not.
    let nodes = if map.len() <= NODE { usize::from(!map.is_empty()) } else { map.len().div_ceil(NODE / 2) };
    let node = allocated(NODE * size_of::<(String, Value)>() + COUNTS);
    nodes * node + map.iter().map(|(name, member)| allocated(name.capacity()) + value(member)).sum::<usize>()
}

fn value(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => allocated(text.capacity()),
        Value::Array(list) => allocated(list.capacity() * size_of::<Value>()) + list.iter().map(self::value).sum::<usize>(),
        Value::Object(map) => members(map),
    }
}

fn text(text: &str) -> usize {
    allocated(text.len())
}

/// What is short is within.
fn word(word: &SmolStr) -> usize {
    if word.is_heap_allocated() { allocated(COUNTS + word.len()) } else { 0 }
}

fn counted(text: &Arc<str>) -> usize {
    allocated(COUNTS + text.len())
}

/// jemalloc has four sizes to each doubling, and none that are closer than 16 bytes.
fn allocated(bytes: usize) -> usize {
    bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_has_one_of_four_sizes_to_a_doubling() {
        for (bytes, size) in
            [(0, 0), (1, 16), (16, 16), (17, 32), (128, 128), (129, 160), (256, 256), (257, 320), (513, 640), (750, 768), (1025, 1280)]
        {
            assert_eq!(allocated(bytes), size, "{bytes}");
        }
    }
}
