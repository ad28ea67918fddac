//! From a name to the types that have it.

/// As many bits of a hash as tell its bucket: a kernel's 200,000 names are some 50 a bucket.
const BITS: u32 = 12;

/// Types by the hashes of their names. Sorting them as a whole would take half of all that reading the
/// file takes, and of its names a few hundred are asked for.
#[derive(Debug)]
pub(super) struct Index {
    /// A name's hash in the upper half and a type's id in the lower, bucket by bucket; within each in the
    /// order in which they came.
    entries: Vec<u64>,
    /// Where each bucket begins, and the last ends.
    begins: Vec<u32>,
}

impl Index {
    /// Takes pairs of a name's hash, in the upper half, and a type's id.
    pub(super) fn new(pairs: &[u64]) -> Self {
        let mut begins = vec![0; (1 << BITS) + 1];
        for pair in pairs {
            begins[bucket(*pair) + 1] += 1;
        }
        let mut sum = 0;
        for begin in &mut begins {
            sum += *begin;
            *begin = sum;
        }
        let mut next = begins.clone();
        let mut entries = vec![0; pairs.len()];
        for pair in pairs {
            let place = &mut next[bucket(*pair)];
            entries[*place as usize] = *pair;
            *place += 1;
        }
        Self { entries, begins }
    }

    /// The ids that came with this hash, in their order.
    pub(super) fn ids(&self, hash: u32) -> impl Iterator<Item = u32> {
        let bucket = bucket(u64::from(hash) << 32);
        let range = self.begins[bucket] as usize..self.begins[bucket + 1] as usize;
        let entries = self.entries[range].iter();
        entries
            .filter(move |entry| (**entry >> 32) as u32 == hash)
            .map(|entry| *entry as u32)
    }
}

fn bucket(pair: u64) -> usize {
    (pair >> (u64::BITS - BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hash_has_its_ids_in_their_order() {
        let hashes = [7, u32::MAX, 0, 7, 1 << 31, 7, u32::MAX];
        let pairs = hashes.iter().zip(1u64..);
        let pairs: Vec<_> = (pairs.map(|(hash, id)| u64::from(*hash) << 32 | id)).collect();
        let index = Index::new(&pairs);
        let ids = |hash| index.ids(hash).collect::<Vec<_>>();
        assert_eq!(ids(7), [1, 4, 6]);
        assert_eq!(ids(u32::MAX), [2, 7]);
        assert_eq!(ids(0), [3]);
        assert_eq!(ids(1 << 31), [5]);
        assert_eq!(ids(8).len(), 0, "of the same bucket");
        assert_eq!(Index::new(&[]).ids(7).count(), 0);
    }
}
