//! The screen as a PNG file.

use devices::display::Frame;

use super::Display;

impl Display {
    /// The screen as it is now, as the bytes of a PNG file with 8 bits for each of red, green and blue. Takes some time
    /// for a large one.
    ///
    /// # Errors
    /// The display has no screen, or the picture cannot be encoded: one sentence.
    pub fn screenshot(&self) -> Result<Vec<u8>, String> {
        if !self.is_connected() {
            return Err("the guest has no screen".into());
        }
        encode(&self.picture()).map_err(|error| format!("the screen is not a picture: {error}"))
    }
}

fn encode(frame: &Frame) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or_default();
    let mut encoder = png::Encoder::new(&mut file, side(frame.width), side(frame.height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    let bytes: Vec<u8> = frame
        .pixels
        .iter()
        .flat_map(|pixel| {
            let [_, r, g, b] = pixel.to_be_bytes();
            [r, g, b]
        })
        .collect();
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::{Recorder, TestScreen};
    use super::*;

    #[test]
    fn a_screenshot_has_the_pixels_of_the_screen() {
        let display = Display::new();
        assert_eq!(display.screenshot(), Err("the guest has no screen".into()));
        let screen = TestScreen::new(70, 30);
        screen.noise(1);
        display.connect(Box::new(screen.clone()), Recorder::new());
        let file = display.screenshot().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!((info.width, info.height, info.color_type), (70, 30, png::ColorType::Rgb));
        let pixels: Vec<u32> = bytes.chunks(3).map(|p| u32::from_be_bytes([0, p[0], p[1], p[2]])).collect();
        assert!(pixels == screen.frame().pixels);
        // Nobody watches: nothing is kept, and nobody looks on.
        assert_eq!((display.looks(), display.watchers()), (1, 0));
    }
}
