//! What goes in comes out, and what was changed on the way is refused.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::Cursor;

use copal_bundle::{
    BLOCK, CHUNK, FormatError, GroupDecoder, Header, Index, ZERO,
    encode::{Base, Encoded, Packing, encode},
    file, hint,
};
use proptest::prelude::*;

struct Made {
    encoded: Encoded,
    index: Vec<u8>,
    data: Vec<u8>,
}

fn make(image: &[u8], bases: &[Base]) -> Made {
    let (mut data, mut index) = (Vec::new(), Vec::new());
    let encoded = encode(
        &mut Cursor::new(image),
        &Packing { bases, ..Packing::default() },
        &mut data,
        &mut index,
        |_| (),
    )
    .unwrap();
    assert_eq!((encoded.index_size, encoded.header.data_size), (index.len() as u64, data.len() as u64));
    Made { encoded, index, data }
}

/// The image again, each chunk checked, as a device does it.
fn unmake(index: &[u8], data: &[u8]) -> Result<Vec<u8>, FormatError> {
    use sha2::Digest as _;
    let index = Index::open(index, index.len() as u64)?;
    let header = index.header().clone();
    let mut blocks = Vec::new();
    let mut decoder = GroupDecoder::new();
    for n in 0..header.groups {
        let group = index.group(n)?;
        let range = index.group_range(n);
        let bytes = data.get(range.start as usize..range.end as usize).unwrap_or_default();
        blocks.extend_from_slice(decoder.decode(&group, bytes)?);
        assert_eq!(index.group_of(group.first), n);
        assert_eq!(index.group_of(group.first + group.blocks - 1), n);
    }
    let mut image = Vec::new();
    let mut map = Vec::new();
    for segment in 0..index.segments().0 {
        index.segment(segment, &mut map)?;
        for block in &map {
            match *block {
                ZERO => image.resize(image.len() + BLOCK, 0),
                n => image.extend_from_slice(&blocks[n as usize * BLOCK..][..BLOCK]),
            }
        }
    }
    for (n, chunk) in (0..).zip(image.chunks(CHUNK)) {
        assert_eq!(chunk.len(), index.chunk_len(n));
        if sha2::Sha256::digest(chunk)[..] != index.chunk_sha256(n)? {
            return Err(FormatError::Damaged { part: "chunk", why: n.to_string() });
        }
    }
    Ok(image)
}

fn block(kind: u8) -> Vec<u8> {
    match kind {
        0..3 => vec![0; BLOCK],
        3 => vec![0xff; BLOCK],
        _ => (0..BLOCK).map(|i| (i as u8).wrapping_mul(kind) ^ (i >> 5) as u8).collect(),
    }
}

fn image() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((any::<u8>(), 1..40_usize), 1..24).prop_map(|runs| {
        runs.into_iter()
            .flat_map(|(kind, n)| {
                (0..n).map(move |i| if kind > 200 { kind.wrapping_sub(i as u8) } else { kind })
            })
            .flat_map(block)
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_image_comes_out_as_it_went_in(image in image(), base in image()) {
        for bases in [vec![], vec![Base::from_image(&base[..]).unwrap()]] {
            let made = make(&image, &bases);
            prop_assert!(unmake(&made.index, &made.data).unwrap() == image);
        }
    }

    #[test]
    fn a_changed_byte_is_refused_or_seen(image in image(), place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut made = make(&image, &[]);
        let whole = made.index.len() + made.data.len();
        let at = place.index(whole);
        if at < made.index.len() {
            made.index[at] ^= 1 << bit;
        } else {
            let at = at - made.index.len();
            made.data[at] ^= 1 << bit;
        }
        // What the release binds by hash (hints, hashes of whole blobs) may change unseen here; the image may not.
        if let Ok(got) = unmake(&made.index, &made.data) {
            prop_assert!(got == image);
        }
    }

    #[test]
    fn arbitrary_bytes_are_never_more_than_an_error(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut index = bytes.clone();
        prop_assert!(Index::open(&bytes[..], bytes.len() as u64).is_err());
        if index.len() >= 8 {
            index[..8].copy_from_slice(b"COPALIX1");
            let _ = Index::open(&index[..], index.len() as u64);
        }
        prop_assert!(file::read(&mut Cursor::new(&bytes)).is_err());
    }
}

#[test]
fn claimed_sizes_allocate_nothing() {
    let header = Header {
        image_size: 64 << 30,
        image_sha256: [1; 32],
        data_size: 60 << 30,
        data_sha256: [2; 32],
        distinct: 1 << 24,
        groups: 1 << 18,
        map_size: 1 << 20,
    };
    let size = header.index_size();
    assert!(size < copal_bundle::MAX_INDEX, "the largest image has an index: {size}");
    assert!(Index::open(&header.to_bytes()[..], 128).is_err());
    assert!(matches!(Index::open(&header.to_bytes()[..], size), Err(FormatError::Read { .. })));
    for (larger, at) in [(u64::MAX, 8), (u64::MAX, 112), (u64::MAX, 48)] {
        let mut bytes = header.to_bytes();
        bytes[at..at + 8].copy_from_slice(&larger.to_le_bytes());
        assert!(Header::parse(&bytes).is_err(), "{larger} at {at}");
    }
}

#[test]
fn later_formats_are_told_from_damage() {
    let made = make(&block(9), &[]);
    let mut bytes = made.index.clone();
    bytes[7] = b'2';
    assert!(matches!(Header::parse(&bytes), Err(FormatError::Newer { .. })));
    let mut bytes = made.index.clone();
    bytes[104] = 1;
    assert!(matches!(Header::parse(&bytes), Err(FormatError::Newer { .. })));
}

#[test]
fn what_a_base_lacks_lies_together() {
    let old: Vec<u8> = (10..200).flat_map(block).collect();
    let mut new = old.clone();
    for at in [3, 70, 150] {
        new[at * BLOCK..(at + 1) * BLOCK].fill(at as u8);
    }
    let made = make(&new, &[Base::from_image(&old[..]).unwrap()]);
    let index = Index::open(&made.index[..], made.index.len() as u64).unwrap();
    let last = index.group(index.header().groups - 1).unwrap();
    assert_eq!(last.blocks, 3, "the new blocks are one group, the last");
    assert_eq!(made.encoded.lacking, [u64::from(last.len)]);
    let again = make(&new, &[Base::from_index(&index).unwrap()]);
    assert_eq!(again.encoded.lacking, [0], "an index serves as a base too");
    let mut hints = [0; 3];
    index.hints(last.first, &mut hints).unwrap();
    assert_eq!(hints[0], hint(&[3; BLOCK]));
}

#[test]
fn the_format_stays_as_it_is() {
    let image: Vec<u8> = [block(1), block(7), block(8), block(7), block(3), block(3), block(3)].concat();
    let made = make(&image, &[]);
    let map = &made.index[128 + 32 + 40..][..4 + made.encoded.header.map_size as usize];
    assert_eq!(made.index.len(), 244);
    assert_eq!(
        hex(&made.index[..128]) + &hex(map),
        "\
434f50414c49583100700000000000008228b22b6afbf2f77cb0d3f05ea58661
55c4d5106c27d2293dc211588643c5c92214000000000000285d3f1bf11f3be7
0acdbe6bc3e3da96b42928f7fc5eb2edaef000edd0fc8ba90000010000100000
0300000001000000000000000000000010000000000000000000000000000000
1000000028b52ffd200739000004090006000f02
"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

fn bundle(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in members {
        file::begin(&mut out, name, bytes.len() as u64).unwrap();
        out.extend_from_slice(bytes);
        file::pad(&mut out, bytes.len() as u64).unwrap();
    }
    file::finish(&mut out).unwrap();
    out
}

#[test]
fn a_bundle_file_has_its_members_in_order_and_nothing_else() {
    let good = bundle(&[
        ("release.json", b"{}"),
        ("boot.index", b"i"),
        ("boot.data", b"data"),
        ("rootfs.index", b"ii"),
        ("rootfs.data", &[7; 1000]),
    ]);
    let contents = file::read(&mut Cursor::new(&good)).unwrap();
    assert_eq!(contents.release, b"{}");
    let rootfs = &contents.payloads[1];
    assert_eq!((rootfs.name.as_str(), rootfs.data.size), ("rootfs", 1000));
    assert_eq!(good[rootfs.data.offset as usize..][..1000], [7; 1000]);
    assert!(file::read(&mut Cursor::new(&bundle(&[("release.json", b"{}"), ("agent.data", b"x")]))).is_ok());
    for bad in [
        &[("boot.index", &b"i"[..]), ("boot.data", b"d"), ("release.json", b"{}")][..],
        &[("release.json", b"{}")],
        &[("release.json", b"{}"), ("boot.index", b"i")],
        &[("release.json", b"{}"), ("boot.index", b"i"), ("rootfs.data", b"d")],
        &[("release.json", b"{}"), ("rootfs.data", b"d"), ("boot.data", b"d")],
        &[("release.json", b"{}"), ("boot.data", b"d"), ("boot.data", b"d")],
        &[("release.json", b"{}"), ("boot.data", b"d"), ("README", b"d")],
        &[("release.json", b"{}"), ("../boot.data", b"d")],
        &[("release.json", b"{}"), ("release.json", b"{}"), ("boot.data", b"d")],
    ] {
        assert!(file::read(&mut Cursor::new(&bundle(bad))).is_err(), "{bad:?}");
    }
    for end in 0..good.len() - 512 {
        assert!(file::read(&mut Cursor::new(&good[..end])).is_err(), "cut at {end}");
    }
    let mut longer = good.clone();
    longer.extend_from_slice(b"more");
    assert!(file::read(&mut Cursor::new(&longer)).is_err());
}

#[test]
fn an_image_that_is_not_whole_blocks_is_refused() {
    for size in [0, 1, BLOCK - 1, BLOCK + 512] {
        let made = encode(
            &mut Cursor::new(vec![1; size]),
            &Packing::default(),
            &mut Vec::new(),
            &mut Vec::new(),
            |_| (),
        );
        assert!(made.is_err(), "{size}");
    }
}
