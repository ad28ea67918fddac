//! Builds small BTF blobs for tests.

/// A blob in the making. Its methods add a type and return its id.
pub(crate) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    layout: Vec<u8>,
    last: u32,
}

impl Blob {
    pub(crate) fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
            layout: Vec::new(),
            last: 0,
        }
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Any record: `info` is `struct btf_type`'s, `word` its size or type, `body` what follows.
    pub(crate) fn record(&mut self, name: &str, info: u32, word: u32, body: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, word].iter().chain(body) {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.last += 1;
        self.last
    }

    /// A record of kind `kind` without elements, that refers to a type.
    pub(crate) fn reference(&mut self, kind: u32, name: &str, id: u32) -> u32 {
        self.record(name, kind << 24, id, &[])
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.bit_int(name, size, 0, size * 8)
    }

    /// An integer of `bits` bits, `offset` bits into its `size` bytes: how old BTF writes a bitfield.
    pub(crate) fn bit_int(&mut self, name: &str, size: u32, offset: u32, bits: u32) -> u32 {
        self.record(name, 1 << 24, size, &[offset << 16 | bits])
    }

    pub(crate) fn pointer(&mut self, id: u32) -> u32 {
        self.reference(2, "", id)
    }

    pub(crate) fn array(&mut self, id: u32, count: u32) -> u32 {
        self.record("", 3 << 24, 0, &[id, id, count])
    }

    /// Members are name, type, offset in bits.
    pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(4 << 24, name, size, members)
    }

    pub(crate) fn union(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(5 << 24, name, size, members)
    }

    /// A struct with `kind_flag`; members have a width in bits too, 0 where they are no bitfield.
    pub(crate) fn flagged_structure(
        &mut self,
        name: &str,
        size: u32,
        members: &[(&str, u32, u32, u32)],
    ) -> u32 {
        let members: Vec<_> = members
            .iter()
            .map(|(name, id, bit, width)| (*name, *id, width << 24 | bit))
            .collect();
        self.composite(1 << 31 | 4 << 24, name, size, &members)
    }

    fn composite(&mut self, info: u32, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let body: Vec<u32> = members
            .iter()
            .flat_map(|(name, id, offset)| [self.string(name), *id, *offset])
            .collect();
        self.record(name, info | members.len() as u32, size, &body)
    }

    pub(crate) fn enumeration(&mut self, name: &str, signed: bool, values: &[(&str, i32)]) -> u32 {
        let body: Vec<u32> = values
            .iter()
            .flat_map(|(name, value)| [self.string(name), value.cast_unsigned()])
            .collect();
        let info = u32::from(signed) << 31 | 6 << 24 | values.len() as u32;
        self.record(name, info, 4, &body)
    }

    pub(crate) fn enumeration64(&mut self, name: &str, values: &[(&str, i64)]) -> u32 {
        let body: Vec<u32> = values
            .iter()
            .flat_map(|(name, value)| [self.string(name), *value as u32, (*value >> 32) as u32])
            .collect();
        self.record(name, 19 << 24 | values.len() as u32, 8, &body)
    }

    /// A function's prototype; a last parameter `("", 0)` stands for `...`.
    pub(crate) fn prototype(&mut self, result: u32, params: &[(&str, u32)]) -> u32 {
        let body: Vec<u32> = params
            .iter()
            .flat_map(|(name, id)| [self.string(name), *id])
            .collect();
        self.record("", 13 << 24 | params.len() as u32, result, &body)
    }

    /// Adds a layout section, as kernels from 7.x have: what follows each kind, once and per element, in bytes.
    pub(crate) fn layout(&mut self, kinds: &[(u8, u8)]) {
        self.layout = kinds
            .iter()
            .flat_map(|(once, each)| [*once, *each, 0, 0])
            .collect();
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut header = vec![0, types, types, strings];
        if !self.layout.is_empty() {
            header.extend([types + strings, self.layout.len() as u32]);
        }
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        let length = 8 + header.len() as u32 * 4;
        for word in [length].iter().chain(&header) {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend(self.types);
        bytes.extend(self.strings);
        bytes.extend(self.layout);
        bytes
    }
}
